"""Runs: the driver that performs what the engine asks, and what it acts through.

Knows models, kernels, machines and the engine; knows nothing of MCP or of terminals.
"""

from __future__ import annotations

from . import events
from .budget import Budget, Limits
from .differences import compare
from .driver import check_request, run
from .file_selection import select_files
from .files import opened_files
from .history import (
    COMPLETE,
    RunRecord,
    RunSummary,
    delete_runs,
    existing_checkpoints,
    load_record,
    next_step_hint,
    prune,
    summaries,
    summary,
)
from .lineage import Node, fleet_lineage, render_lineage, run_lineage
from .narration import narrate
from .notes import lost_variables, not_carried
from .past import load_past
from .repl_handlers import run_cell
from .request import RunRequest, RunResult
from .resume_and_replay import Changes, Replay, replay, resume
from .workbench import Branches, Snapshot, Workbench

__all__ = [
    "COMPLETE",
    "Branches",
    "Budget",
    "Changes",
    "Limits",
    "Node",
    "Replay",
    "RunRecord",
    "RunRequest",
    "RunResult",
    "RunSummary",
    "Snapshot",
    "Workbench",
    "check_request",
    "compare",
    "delete_runs",
    "events",
    "existing_checkpoints",
    "fleet_lineage",
    "load_past",
    "load_record",
    "lost_variables",
    "narrate",
    "next_step_hint",
    "not_carried",
    "opened_files",
    "prune",
    "render_lineage",
    "replay",
    "resume",
    "run",
    "run_cell",
    "run_lineage",
    "select_files",
    "summaries",
    "summary",
]
