"""Paths in a machine."""

from __future__ import annotations

from typing import Final

from vers_rlm_mcp.errors import PathRefused

WORKSPACE: Final = "/workspace"
"""Where programs start by default."""


def check_path(path: str) -> None:
    """Raise `PathRefused` unless this is an absolute path without NUL."""
    if not path.startswith("/") or "\0" in path:
        raise PathRefused(f"{path!r} is not an absolute path; start it with {WORKSPACE}/.")
