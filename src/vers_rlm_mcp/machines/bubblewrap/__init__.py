"""Machines that are Linux namespaces over overlay layers, started through bubblewrap."""

from __future__ import annotations

from .backend import BubblewrapBackend
from .config import BubblewrapConfig, Network
from .probe import Finding, probe

__all__ = ["BubblewrapBackend", "BubblewrapConfig", "Finding", "Network", "probe"]
