"""Machines: file systems with processes that can be snapshotted and branched.

Knows no kernel, no model and no run; a backend's own types stay in its module.
"""

from __future__ import annotations

from .base import (
    INTENT,
    Backend,
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
)
from .fleet import Fleet
from .handles import unknown_handle
from .operations import Captured, CommandResult, read_bytes, run_command, shell, upload
from .paths import WORKSPACE, check_path

__all__ = [
    "INTENT",
    "WORKSPACE",
    "Backend",
    "Capabilities",
    "Captured",
    "CommandResult",
    "Commit",
    "ExitStatus",
    "Fidelity",
    "Finding",
    "Fleet",
    "Isolation",
    "Machine",
    "MachineInfo",
    "MachineSpec",
    "Process",
    "check_path",
    "read_bytes",
    "run_command",
    "shell",
    "unknown_handle",
    "upload",
]
