"""Machines can be copied whatever they may reach: the package's own API refuses most of them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from microvm.machines import open_microsandbox
from vers_rlm_mcp.machines import run_command
from vers_rlm_mcp.machines.microsandbox import MicrosandboxBackend

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vers_rlm_mcp.machines import Backend

CONNECT = """
import socket, sys
try:
    socket.create_connection(("93.184.215.14", 80), timeout=3)
except OSError as error:
    sys.exit(f"refused: {type(error).__name__}")
"""


@pytest.mark.parametrize(
    "policy",
    [
        {"network": "off"},
        {"network": "on"},
        {"network": "on", "network_domains": ("pypi.org", "files.pythonhosted.org")},
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
            for info in await backend.list():
                await backend.delete(info.id)
            for commit in await backend.commits():
                await backend.delete_commit(commit.id)


async def test_without_a_network_no_address_is_reached_by_a_machine_or_its_copies(
    backend: Backend,
) -> None:
    machine = await backend.create()
    copies = await machine.branch()
    try:
        for tried in (machine, *copies):
            result = await run_command(tried, ["python3", "-c", CONNECT], timeout=60)
            assert "refused" in result.stderr.text
    finally:
        for tried in (machine, *copies):
            await tried.delete()
