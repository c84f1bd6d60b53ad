"""Machines of the Vers service: Firecracker VMs whose memory is copied along with their disk.

Looking for a key loads nothing heavy; the SSH and HTTP libraries are loaded with the backend.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .config import Key, VersConfig, find_key, find_url
from .factory import VersFactory

if TYPE_CHECKING:
    from .backend import VersBackend
    from .probe import probe

FACTORY = VersFactory()

__all__ = ["FACTORY", "Key", "VersBackend", "VersConfig", "find_key", "find_url", "probe"]

_LATE = {"VersBackend": "backend", "probe": "probe"}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LATE[name]}", __name__), name)
