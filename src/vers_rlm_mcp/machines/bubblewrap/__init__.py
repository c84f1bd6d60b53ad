"""Machines that are Linux namespaces over overlay layers, started through bubblewrap."""

from __future__ import annotations

from .backend import BubblewrapBackend
from .config import BubblewrapConfig, Network
from .probe import probe

__all__ = ["BubblewrapBackend", "BubblewrapConfig", "Network", "probe"]
