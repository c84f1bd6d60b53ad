"""Machines of microsandbox: micro-VMs on this computer, whose memory is copied with their disk.

Checking whether it can be used loads nothing heavy; the package is loaded with the backend.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .config import MicrosandboxConfig
from .factory import MicrosandboxFactory
from .usable import forget, usable

if TYPE_CHECKING:
    from .backend import MicrosandboxBackend
    from .probe import probe

FACTORY = MicrosandboxFactory()

__all__ = ["FACTORY", "MicrosandboxBackend", "MicrosandboxConfig", "forget", "probe", "usable"]

_LATE = {"MicrosandboxBackend": "backend", "probe": "probe"}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LATE[name]}", __name__), name)
