"""What a client of the emulator has to be told, and what tests of it have in common."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vers_rlm_mcp import retries
from vers_rlm_mcp.machines.vers import Key, VersConfig, find_url, link

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pytest

    from vers_emulator import VersEmulator

UNKNOWN = "00000000-0000-4000-8000-000000000000"
"""An id of the right shape that nobody made."""


def config_of(emulator: VersEmulator) -> VersConfig:
    """How to reach it; its copies carry the disk only."""
    return config_from(emulator.facts())


def config_from(facts: Mapping[str, Any]) -> VersConfig:
    """The same, from what an emulator tells of itself."""
    host, port = facts["ssh_address"]
    return VersConfig(
        Key(facts["api_key"], "the emulator"),
        url=find_url({"VERS_BASE_URL": facts["base_url"]}),
        ssh_domain=facts["ssh_domain"],
        ssh_address=f"{host}:{port}",
        ca_file=Path(facts["ca_file"]),
        fidelity="disk",
    )


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the pauses between attempts: how long they are is tested elsewhere."""
    monkeypatch.setattr(retries, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(link, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(link, "LAST_PAUSE", 0.1)
