"""Defaults for machines of this backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Network = Literal["off", "on", "host"]

DEFAULT_IMAGE: Final = "python:3.12-slim"
"""Small, and with the Python that the daemon and the kernel need."""


@dataclass(frozen=True, slots=True)
class MicrosandboxConfig:
    """What machines get unless their spec says otherwise."""

    image: str = DEFAULT_IMAGE
    """An OCI image, pulled when it is first needed, or the path of a docker-archive."""
    network: Network = "off"
    """``on`` reaches public addresses, ``host`` also the host and its networks."""
    network_domains: tuple[str, ...] = ()
    """With ``on``, the only domains that machines reach. Empty means every public address."""
    vcpu_count: int = 2
    mem_size_mib: int = 2048
    fs_size_mib: int = 8192
    max_seconds: float | None = None
    """Seconds after which a machine is ended, even if programs run on it. None means never."""
