"""What a machine with a network of its own can reach, and what not."""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
from typing import TYPE_CHECKING

import pytest

from vers_rlm_mcp.machines import run_command
from vers_rlm_mcp.machines.bubblewrap import BubblewrapBackend, BubblewrapConfig, network

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vers_rlm_mcp.machines.bubblewrap import Network

SECONDS = 60.0

REACH = """
import json, socket, sys
ports = json.loads(sys.argv[1])
places = ["127.0.0.1", "::1", "localhost", "10.0.2.2", sys.argv[2]]
for line in list(open("/proc/net/route"))[1:]:
    gateway = bytes.fromhex(line.split()[2])[::-1]
    places.append(socket.inet_ntoa(gateway))
reached = []
for place in places:
    for port in ports:
        try:
            socket.create_connection((place, port), 0.5).close()
        except OSError:
            continue
        reached.append([place, port])
print(json.dumps([reached, open("/proc/net/route").read().count("00000000\\t")]))
"""


@pytest.fixture
def ports() -> Iterator[list[int]]:
    """Services of the host that are for the host alone."""
    with (
        socket.create_server(("127.0.0.1", 0)) as old,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as new,
    ):
        yield [old.getsockname()[1], new.getsockname()[1]]


async def reached(state: Path, kind: Network, ports: list[int]) -> list[list[object]]:
    async with BubblewrapBackend(state, BubblewrapConfig(network=kind)) as backend:
        machine = await backend.create()
        argv = ["python3", "-c", REACH, json.dumps(ports), network.NAMESERVER]
        result = await run_command(machine, argv, timeout=SECONDS)
        await machine.delete()
    found, routes = json.loads(result.stdout.text)
    assert kind == "host" or bool(routes) == (kind == "on")
    return found


@pytest.mark.skipif(bool(network.obstacle()), reason=network.obstacle() or "none")
@pytest.mark.parametrize("helper", ["pasta", "slirp4netns"])
async def test_the_hosts_own_services_are_out_of_reach_of_a_network_of_ones_own(
    helper: str,
    state: Path,
    ports: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = shutil.which(helper)
    if program is None:
        pytest.skip(f"{helper} is not installed")
    with tempfile.TemporaryDirectory() as alone:
        os.chmod(alone, 0o755)  # noqa: PTH101 - the machines' own user starts it
        os.symlink(program, f"{alone}/{helper}")  # noqa: PTH211
        monkeypatch.setenv("PATH", alone)
        assert network.helper() == f"{alone}/{helper}"
        assert await reached(state, "on", ports) == []


async def test_the_hosts_network_reaches_the_hosts_own_services(
    state: Path, ports: list[int]
) -> None:
    """As it says: whoever chooses `host` gives the machine these."""
    assert ["127.0.0.1", ports[0]] in await reached(state, "host", ports)
