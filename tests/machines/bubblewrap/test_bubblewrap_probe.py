"""The probe says what is there, or what is missing and what to do about it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vers_rlm_mcp.errors import BackendUnavailable
from vers_rlm_mcp.machines.bubblewrap import (
    BubblewrapBackend,
    BubblewrapConfig,
    init_program,
    network,
    probe,
)

if TYPE_CHECKING:
    from conftest import Shell

NETWORK = BubblewrapConfig(network="on")


async def test_a_host_that_can_make_machines_passes(state: Path) -> None:
    findings = await probe(state)
    assert [finding.text for finding in findings if not finding.ok] == []
    assert {"kernel", "python", "machine", "limit of memory"} <= {item.name for item in findings}
    async with BubblewrapBackend(state) as backend:
        assert await backend.list() == []


async def test_a_failed_machine_comes_with_remedies(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Path("/bin/false")
    monkeypatch.setattr("vers_rlm_mcp.machines.bubblewrap.sandbox._bwrap", lambda: failing)
    findings = await probe(state)
    assert not findings[-1].ok or not findings[2].ok
    text = next(finding.text for finding in findings if not finding.ok)
    assert "VERS_RLM_STATE_DIR" in text


async def test_a_state_directory_that_cannot_hold_machines_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(init_program, "interpreter", lambda: Path(sys.executable))
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(BackendUnavailable, match=f"{blocked}.*VERS_RLM_STATE_DIR"):
        await probe(blocked)


async def test_without_a_helper_the_network_says_what_to_install(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(state))
    async with BubblewrapBackend(state, NETWORK) as backend:
        with pytest.raises(BackendUnavailable, match=r"install the package `passt`"):
            await backend.create()
        assert await backend.list() == []
    assert "passt" in [finding.text for finding in await probe(state, NETWORK)][-1]


@pytest.mark.skipif(bool(network.obstacle()), reason=network.obstacle() or "none")
async def test_with_a_helper_machines_have_a_network(state: Path, sh: Shell) -> None:
    async with BubblewrapBackend(state, NETWORK) as backend:
        machine = await backend.create()
        assert "00000000" in await sh(machine, "cat /proc/net/route")
        assert network.NAMESERVER in await sh(machine, "cat /etc/resolv.conf")
        await machine.delete()
