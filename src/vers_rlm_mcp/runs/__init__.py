"""Runs: the driver that performs what the engine asks, and what it acts through.

Knows models, kernels, machines and the engine; knows nothing of MCP or of terminals.
"""

from __future__ import annotations

from .backends import Choice, choose_backend, examine_backend
from .calls import lost_variables, not_carried, run_cell
from .differences import compare
from .driver import check_request, run
from .files import opened_files
from .fleets import Item, inventory, open_fleet
from .request import RunRequest, RunResult
from .workbench import Branches, Snapshot, Workbench

__all__ = [
    "Branches",
    "Choice",
    "Item",
    "RunRequest",
    "RunResult",
    "Snapshot",
    "Workbench",
    "check_request",
    "choose_backend",
    "compare",
    "examine_backend",
    "inventory",
    "lost_variables",
    "not_carried",
    "open_fleet",
    "opened_files",
    "run",
    "run_cell",
]
