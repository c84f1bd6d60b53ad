"""What differs between two machines, and bringing files of one into another."""

from __future__ import annotations

from .changes import Difference, Entry, FactChange, FileChange, shown
from .comparison import diff
from .merging import Digest, bring_back, digest

__all__ = [
    "Difference",
    "Digest",
    "Entry",
    "FactChange",
    "FileChange",
    "bring_back",
    "diff",
    "digest",
    "shown",
]
