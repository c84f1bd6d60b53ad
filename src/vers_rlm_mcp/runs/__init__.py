"""Runs: the driver that performs what the engine asks, and what it acts through.

Knows models, kernels, machines and the engine; knows nothing of MCP or of terminals.
"""

from __future__ import annotations

from .calls import lost_variables, not_carried, run_cell
from .driver import check_request, run
from .files import opened_files
from .fleets import Item, inventory, obstacles, open_fleet
from .request import RunRequest, RunResult
from .workbench import Branches, Snapshot, Workbench

__all__ = [
    "Branches",
    "Item",
    "RunRequest",
    "RunResult",
    "Snapshot",
    "Workbench",
    "check_request",
    "inventory",
    "lost_variables",
    "not_carried",
    "obstacles",
    "open_fleet",
    "opened_files",
    "run",
    "run_cell",
]
