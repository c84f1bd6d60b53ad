"""Defaults for machines of this backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path

Network = Literal["off", "on", "host"]


@dataclass(frozen=True, slots=True)
class BubblewrapConfig:
    """What machines get unless their spec says otherwise."""

    base: Path | None = None
    """A root directory or a docker-archive; None for the host's own system, shown selectively."""
    network: Network = "off"
    vcpu_count: int = 2
    mem_size_mib: int = 2048
    fs_size_mib: int = 8192
    max_processes: int = 512
