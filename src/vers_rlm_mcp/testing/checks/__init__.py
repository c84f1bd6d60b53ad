"""The contract of machines, as checks that run on any backend.

Each check makes the machines that it needs and removes them afterwards.
"""

from __future__ import annotations

from . import copies, files, lifecycle, processes
from .lab import Check, CheckFailed, OpenBackend

CHECKS: tuple[Check, ...] = tuple(
    value
    for module in (processes, files, lifecycle, copies)
    for value in vars(module).values()
    if isinstance(value, Check)
)

__all__ = ["CHECKS", "Check", "CheckFailed", "OpenBackend"]
