"""Machines of the Vers service: Firecracker VMs whose memory is copied along with their disk."""

from __future__ import annotations

from .backend import VersBackend
from .config import VersConfig, find_key, find_url

__all__ = ["VersBackend", "VersConfig", "find_key", "find_url"]
