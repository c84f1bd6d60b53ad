"""Commands on a Vers machine: through the client, and the way the project's seed ran them.

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
from typing import TYPE_CHECKING, Any

import anyio
import httpx2
from anyio.abc import SocketAttribute, SocketStream

from vers_rlm_mcp.machines import run_command
from vers_rlm_mcp.machines.vers import Key, VersBackend, VersConfig, find_url

from .tables import Section, computer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vers_rlm_mcp.machines import Machine

NUMBER = 200
FAR_NUMBER = 50
CLIENT, SEED = "the client", "a new ssh for each"
FASTER = 10
"""How many times, at least, the client is to be faster."""
ONE_WAY = 0.02
"""Seconds: a round trip of 40 ms, as to another part of a continent."""
TESTS = Path(__file__).parent.parent / "tests"


def start_emulator(*options: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    """An emulator in a separate process, like a service."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vers_emulator", *options],
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
    facts: dict[str, Any],
    section: Section,
    place: str,
    column: str,
    number: int,
    run: Callable[[], Awaitable[object]],
) -> None:
    """Note how long each command takes, and what handshakes and logins all of them need."""
    before = await counts(facts)
    for _ in range(number):
        started = time.perf_counter()
        await run()
        milliseconds = (time.perf_counter() - started) * 1000
        section.cell(f"exec `true`, {place}", "ms", column).values.append(milliseconds)
    after = await counts(facts)
    for what, name in (("TLS handshakes", "tls_handshakes"), ("SSH logins", "ssh_logins")):
        cell = section.cell(f"{what}, {place}", "a command", column)
        cell.values.append((after[name] - before[name]) / number)


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


async def measure(*, rounds: int | None = None) -> Section:
    """Start an emulator, and run commands on a machine of it, near and far."""
    notes = [
        "A machine of the Vers emulator, in a process of its own; one command after another.",
        f"Far is {ONE_WAY * 2000:.0f} ms of round trip. The goal is a {FASTER}th of a new ssh.",
    ]
    section = Section("Commands on Vers", [CLIENT, SEED], computer(), notes=notes)
    process, facts = start_emulator()
    try:
        await _near_and_far(facts, section, rounds or NUMBER, rounds or FAR_NUMBER)
    finally:
        process.terminate()
        process.wait()
    for row in section.rows:
        if row.unit == "ms":
            row.goal = round(row.cells[SEED].median / FASTER, 1)
    return section


async def _near_and_far(facts: dict[str, Any], section: Section, near: int, far: int) -> None:
    host, port = facts["ssh_address"]

    async def relay(client: SocketStream) -> None:
        async with (
            client,
            await anyio.connect_tcp(host, port) as service,
            anyio.create_task_group() as both,
        ):
            both.start_soon(carry, client, service)
            await carry(service, client)
            both.cancel_scope.cancel()

    await measure_at(facts, section, "near", near)
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, relay)
        there = ["127.0.0.1", listener.extra(SocketAttribute.local_port)]
        await measure_at({**facts, "ssh_address": there}, section, "far", far)
        tasks.cancel_scope.cancel()


async def measure_at(facts: dict[str, Any], section: Section, place: str, number: int) -> None:
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
            await compare(facts, section, place, number, machine)
        finally:
            await machine.delete()


async def compare(
    facts: dict[str, Any], section: Section, place: str, number: int, machine: Machine
) -> None:
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
        await timed(facts, section, place, CLIENT, number, client_way)
        await timed(facts, section, place, SEED, number, seeds_way)
