"""Paths in a machine."""

from __future__ import annotations

import posixpath
from typing import Final

from vers_rlm_mcp.errors import PathRefused

WORKSPACE: Final = "/workspace"
"""Where programs start by default."""


def resolve_path(path: str) -> str:
    """An absolute path. A relative one starts in the workspace, for which ``~`` stands."""
    if path == "~" or path.startswith("~/"):
        path = path[2:]
    return posixpath.join(WORKSPACE, path)


def check_path(path: str) -> None:
    """Raise `PathRefused` unless this is an absolute path without NUL."""
    if not path.startswith("/") or "\0" in path:
        raise PathRefused(f"{path!r} is not an absolute path; start it with {WORKSPACE}/.")
