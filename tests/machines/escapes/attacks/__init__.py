"""Attempts to get out of a machine, by a root user in it who knows how machines are built.

The package runs in the machine, on its Python: `python3 -m attacks` reads what bait there is,
tries everything and prints the outcomes, both as JSON objects. The host imports it for the names
of the attempts alone.
"""

from __future__ import annotations

from . import files, kernel, network, processes
from .attempt import ATTEMPTS, Bait, Outcome

__all__ = ["ATTEMPTS", "Bait", "Outcome", "files", "kernel", "network", "processes"]
