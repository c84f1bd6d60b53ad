"""Machines that are Linux namespaces over overlay layers, started through bubblewrap."""

from __future__ import annotations

from .backend import BubblewrapBackend
from .config import BubblewrapConfig, Network
from .factory import BubblewrapFactory
from .probe import probe

FACTORY = BubblewrapFactory()

__all__ = ["FACTORY", "BubblewrapBackend", "BubblewrapConfig", "Network", "probe"]
