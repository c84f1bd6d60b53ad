"""Machines that are Linux namespaces over overlay layers, started through bubblewrap."""

from __future__ import annotations

from .backend import BubblewrapBackend, BubblewrapConfig, Network

__all__ = ["BubblewrapBackend", "BubblewrapConfig", "Network"]
