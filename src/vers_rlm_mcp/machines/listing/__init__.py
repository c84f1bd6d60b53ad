"""Finds files in a machine, by paths and patterns."""

from __future__ import annotations

from .listing import Found, FoundFile, find_files

__all__ = ["Found", "FoundFile", "find_files"]
