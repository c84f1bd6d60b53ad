"""How our client is pointed at an emulator."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vers_rlm_mcp.machines.vers import Key, VersConfig, find_url

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .emulator import VersEmulator


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
