"""The contract of machines, as checks that run on any backend.

Each check makes the machines that it needs and removes them afterwards.
"""

from __future__ import annotations

from . import copy_checks, file_checks, lifecycle_checks, process_checks
from .lab import Check, CheckFailed, OpenBackend

CHECKS: tuple[Check, ...] = tuple(
    value
    for module in (process_checks, file_checks, lifecycle_checks, copy_checks)
    for value in vars(module).values()
    if isinstance(value, Check)
)

__all__ = ["CHECKS", "Check", "CheckFailed", "OpenBackend"]
