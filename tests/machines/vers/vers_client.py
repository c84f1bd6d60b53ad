"""What a client of the emulator has to be told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vers_rlm_mcp.machines.vers import VersConfig, find_url
from vers_rlm_mcp.machines.vers.config import Key

if TYPE_CHECKING:
    from vers_emulator import VersEmulator


def config_of(emulator: VersEmulator) -> VersConfig:
    """How to reach it; its copies carry the disk only."""
    host, port = emulator.ssh_address
    return VersConfig(
        Key(emulator.api_key, "the emulator"),
        url=find_url({"VERS_BASE_URL": emulator.base_url}),
        ssh_domain=emulator.options.domain,
        ssh_address=f"{host}:{port}",
        ca_file=emulator.ca_file,
        fidelity="disk",
    )
