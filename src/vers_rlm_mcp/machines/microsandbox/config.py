"""What machines of this backend are like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Network = Literal["off", "on", "host"]

DEFAULT_IMAGE: Final = "python:3.12-slim"
"""Small, and with the Python that the daemon and the kernel need."""


@dataclass(frozen=True, slots=True)
class MicrosandboxConfig:
    """What machines are like where their spec says nothing."""

    image: str = DEFAULT_IMAGE
    """An OCI image, pulled when it is first needed, or the path of a docker-archive."""
    network: Network = "off"
    """``on`` reaches public addresses, ``host`` those of the host and its networks, too."""
    network_domains: tuple[str, ...] = ()
    """With ``on``: these, and nothing else."""
    vcpu_count: int = 2
    mem_size_mib: int = 2048
    fs_size_mib: int = 8192
    max_seconds: float | None = None
    """After so many seconds a machine ends, whatever runs on it."""
