"""Machines: file systems with processes that can be snapshotted and branched.

Knows no kernel, no model and no run. A backend's own types stay in its room.
"""

from __future__ import annotations

from .base import (
    INTENT,
    Backend,
    BackendFactory,
    Capabilities,
    Commit,
    ExitStatus,
    Fidelity,
    Finding,
    Isolation,
    Machine,
    MachineInfo,
    MachineSpec,
    Process,
    Usable,
)
from .fleet import Fleet, Item, describe_strays
from .listing import Found, FoundFile, find_files
from .operations import (
    Captured,
    CommandResult,
    expect_answer,
    read_bytes,
    run_command,
    shell,
    upload,
)
from .paths import WORKSPACE, check_path, resolve_path
from .selection import Choice, choose_backend, open_fleet

__all__ = [
    "INTENT",
    "WORKSPACE",
    "Backend",
    "BackendFactory",
    "Capabilities",
    "Captured",
    "Choice",
    "CommandResult",
    "Commit",
    "ExitStatus",
    "Fidelity",
    "Finding",
    "Fleet",
    "Found",
    "FoundFile",
    "Isolation",
    "Item",
    "Machine",
    "MachineInfo",
    "MachineSpec",
    "Process",
    "Usable",
    "check_path",
    "choose_backend",
    "describe_strays",
    "expect_answer",
    "find_files",
    "open_fleet",
    "read_bytes",
    "resolve_path",
    "run_command",
    "shell",
    "upload",
]
