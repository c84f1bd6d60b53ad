"""Comparing two machines, and merging files of one into the other."""

from __future__ import annotations

from .changes import Difference, Entry, FactChange, FileChange, printable
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
    "printable",
]
