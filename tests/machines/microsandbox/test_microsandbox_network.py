"""Machines can be copied whatever they may reach: the package's own API refuses most of them."""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio.abc import SocketAttribute
from test_microsandbox_smoke import delete_all

from microvm.machines import open_microsandbox
from vers_rlm_mcp.machines import run_command
from vers_rlm_mcp.machines.microsandbox import MicrosandboxBackend

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from anyio.abc import SocketStream

    from vers_rlm_mcp.machines import Backend, Machine
    from vers_rlm_mcp.machines.microsandbox.config import Network

SPEAK = """
import socket, sys
try:
    with socket.create_connection(sys.argv[1:3], timeout=5) as connection:
        connection.sendall(sys.argv[3].encode())
        connection.recv(1)
except OSError as error:
    print(error)
"""


@pytest.mark.parametrize(
    "policy",
    [
        {"network": "off"},
        {"network": "on"},
        {"network": "on", "network_domains": ("example.org", "files.example.org")},
        {"network": "host"},
    ],
    ids=["off", "on", "domains", "host"],
)
async def test_a_machine_with_any_network_policy_can_be_branched_and_restored(
    policy: dict[str, Any], open_backend: Callable[[], Backend], tmp_path: Path
) -> None:
    config = replace(open_microsandbox(tmp_path).config, **policy)
    async with MicrosandboxBackend(tmp_path, config) as backend:
        machine = await backend.create()
        try:
            await machine.branch()
            await backend.restore((await machine.snapshot()).id)
        finally:
            await delete_all(backend)


@pytest.mark.parametrize(("network", "reaches"), [("off", False), ("host", True)])
async def test_what_a_machine_may_reach_is_what_its_copies_may(
    network: Network, reaches: bool, backend: Backend, tmp_path: Path
) -> None:
    """Seen from the other end: the package itself answers for addresses that it refuses."""
    seen: set[str] = set()
    machines: list[Machine] = []

    async def listen(stream: SocketStream) -> None:
        async with stream:
            with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                seen.add((await stream.receive()).decode())

    config = replace(open_microsandbox(tmp_path).config, network=network)
    async with (
        MicrosandboxBackend(tmp_path, config) as limited,
        await anyio.create_tcp_listener(local_host=own_address()) as listener,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, listen)
        address = listener.extra(SocketAttribute.local_address)
        machines.append(await limited.create())
        try:
            machines += await machines[0].branch()
            commit = await machines[0].snapshot()
            machines.append(await limited.restore(commit.id))
            await limited.delete_commit(commit.id)
            for tried in machines:
                argv = ["python3", "-c", SPEAK, str(address[0]), str(address[1]), tried.id]
                assert (await run_command(tried, argv, timeout=60)).status
        finally:
            for tried in machines:
                await tried.delete()
        tasks.cancel_scope.cancel()
    assert seen == ({machine.id for machine in machines} if reaches else set())


def own_address() -> str:
    """Of this computer, as others know it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as found:
        found.connect(("192.0.2.1", 9))  # nothing is sent
        return found.getsockname()[0]
