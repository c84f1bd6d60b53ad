"""200 commands on a Vers machine: through the client, and the way the project's seed ran them.

    python -m benchmarks.vers_exec [NUMBER]

Both go to the same machine of the same emulator, in turn, in one run: first over loopback, where
only what is computed counts, then through a relay that takes as long as a network would. The seed's
way starts an `ssh` for each command, with `openssl s_client` as its proxy; so does this, with the
seed's options. The emulator counts TLS handshakes and SSH logins.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import anyio
import httpx2
from anyio.abc import SocketAttribute, SocketStream

from vers_rlm_mcp.machines import run_command
from vers_rlm_mcp.machines.vers import Key, VersBackend, VersConfig, find_url

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

NUMBER = 200
ONE_WAY = 0.02
"""Seconds: a round trip of 40 ms, as to another part of a continent."""
TESTS = Path(__file__).parent.parent / "tests"


def start_emulator() -> tuple[subprocess.Popen[str], dict[str, Any]]:
    """An emulator in a process of its own, as a service is."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vers_emulator"],
        cwd=TESTS,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())


def seeds_command(facts: dict[str, Any], vm: str, key: Path, command: str) -> list[str]:
    """What the seed runs for one command; the emulator's address takes the place of `%h:443`."""
    host, port = facts["ssh_address"]
    proxy = f"openssl s_client -connect {host}:{port} -servername %h -quiet 2>/dev/null"
    return [
        *("ssh", "-i", str(key), "-o", "StrictHostKeyChecking=no"),
        *("-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=30"),
        *("-o", f"ProxyCommand={proxy}", f"root@{vm}.{facts['ssh_domain']}", command),
    ]


async def counts(facts: dict[str, Any]) -> dict[str, int]:
    """What the emulator has counted so far."""
    root = facts["base_url"].removesuffix("/api/v1")
    async with httpx2.AsyncClient() as client:
        return (await client.get(f"{root}/emulator/counts")).json()


async def timed(
    facts: dict[str, Any], number: int, run: Callable[[], Awaitable[object]]
) -> tuple[list[float], int, int]:
    """Seconds of each command, and the handshakes and logins that all of them needed."""
    before = await counts(facts)
    seconds: list[float] = []
    for _ in range(number):
        started = time.perf_counter()
        await run()
        seconds.append(time.perf_counter() - started)
    after = await counts(facts)
    return (
        seconds,
        after["tls_handshakes"] - before["tls_handshakes"],
        after["ssh_logins"] - before["ssh_logins"],
    )


async def carry(source: SocketStream, target: SocketStream) -> None:
    """Pass on every byte `ONE_WAY` seconds later, at any rate."""
    held, taken = anyio.create_memory_object_stream[tuple[float, bytes]](math.inf)

    async def deliver() -> None:
        async for due, data in taken:
            await anyio.sleep(max(0, due - anyio.current_time()))
            await target.send(data)

    with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
        async with anyio.create_task_group() as tasks, held:
            tasks.start_soon(deliver)
            async for data in source:
                held.send_nowait((anyio.current_time() + ONE_WAY, data))


async def measure(facts: dict[str, Any], number: int) -> None:
    host, port = facts["ssh_address"]

    async def relay(near: SocketStream) -> None:
        async with (
            near,
            await anyio.connect_tcp(host, port) as far,
            anyio.create_task_group() as both,
        ):
            both.start_soon(carry, near, far)
            await carry(far, near)
            both.cancel_scope.cancel()

    print("Over loopback:")
    await measure_at(facts, number)
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, relay)
        there = ["127.0.0.1", listener.extra(SocketAttribute.local_port)]
        print(f"With {ONE_WAY * 2000:.0f} ms of round trip:")
        await measure_at({**facts, "ssh_address": there}, max(1, number // 4))
        tasks.cancel_scope.cancel()


async def measure_at(facts: dict[str, Any], number: int) -> None:
    host, port = facts["ssh_address"]
    config = VersConfig(
        Key(facts["api_key"], "the emulator"),
        url=find_url({"VERS_BASE_URL": facts["base_url"]}),
        ssh_domain=facts["ssh_domain"],
        ssh_address=f"{host}:{port}",
        ca_file=Path(facts["ca_file"]),
        fidelity="disk",
    )
    async with VersBackend(config) as backend:
        machine = await backend.create()
        try:
            await compare(facts, number, machine)
        finally:
            await machine.delete()


async def compare(facts: dict[str, Any], number: int, machine: Any) -> None:
    with tempfile.TemporaryDirectory() as directory:
        key = Path(directory, "key")
        async with httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {facts['api_key']}"}
        ) as client:
            reply = await client.get(f"{facts['base_url']}/vm/{machine.id}/ssh_key")
        await anyio.Path(key).touch(0o600)
        await anyio.Path(key).write_text(reply.json()["ssh_private_key"])
        argv = seeds_command(facts, machine.id, key, "true")

        async def client_way() -> None:
            result = await run_command(machine, ["true"], timeout=30)
            assert result.status is not None
            assert result.status.ok

        async def seeds_way() -> None:
            await anyio.run_process(argv, env=dict(os.environ))

        await client_way()
        ours = await timed(facts, number, client_way)
        seeds = await timed(facts, number, seeds_way)
        report("the client", *ours)
        report("the seed's way", *seeds)
        print(f"  ratio of the medians: {median(seeds[0]) / median(ours[0]):.1f}")


def report(name: str, seconds: list[float], handshakes: int, logins: int) -> None:
    print(
        f"  {name}: {len(seconds)} x exec true in {sum(seconds):.1f} s, median "
        f"{median(seconds) * 1000:.1f} ms; TLS handshakes: {handshakes}, "
        f"SSH logins: {logins}"
    )


def main() -> None:
    number = int(sys.argv[1]) if len(sys.argv) > 1 else NUMBER
    process, facts = start_emulator()
    try:
        anyio.run(measure, facts, number)
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
