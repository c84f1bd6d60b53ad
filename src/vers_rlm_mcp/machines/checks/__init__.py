"""The contract of machines, as checks that run on any backend.

Each check makes the machines it needs and removes them afterwards. Tests run all of them on every
backend; `doctor` runs them on the one at hand.
"""

from __future__ import annotations

from . import copies, files, lifecycle, processes
from .lab import Check, CheckFailed, OpenBackend

CHECKS: tuple[Check, ...] = (
    *processes.CHECKS,
    *files.CHECKS,
    *lifecycle.CHECKS,
    *copies.CHECKS,
)

__all__ = ["CHECKS", "Check", "CheckFailed", "OpenBackend"]
