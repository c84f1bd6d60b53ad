"""Runs: the driver that performs what the engine asks, and what it acts through.

Knows models, kernels, machines and the engine; knows nothing of MCP or of terminals.
"""

from __future__ import annotations

from .again import Changes, Replay, replay, resume
from .differences import compare
from .driver import check_request, run
from .files import opened_files
from .history import COMPLETE, RunRecord, RunSummary, prune, recorded, summaries, summary, way_on
from .lineage import Node, drawn, fleet_lineage, run_lineage
from .notes import lost_variables, not_carried
from .past import recall
from .record import Journal, Records, is_open
from .repl_handlers import run_cell
from .request import RunRequest, RunResult
from .workbench import Branches, Snapshot, Workbench

__all__ = [
    "COMPLETE",
    "Branches",
    "Changes",
    "Journal",
    "Node",
    "Records",
    "Replay",
    "RunRecord",
    "RunRequest",
    "RunResult",
    "RunSummary",
    "Snapshot",
    "Workbench",
    "check_request",
    "compare",
    "drawn",
    "fleet_lineage",
    "is_open",
    "lost_variables",
    "not_carried",
    "opened_files",
    "prune",
    "recall",
    "recorded",
    "replay",
    "resume",
    "run",
    "run_cell",
    "run_lineage",
    "summaries",
    "summary",
    "way_on",
]
