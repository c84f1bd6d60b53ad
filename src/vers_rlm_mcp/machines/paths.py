"""Paths in a machine: what every backend takes, and where programs start."""

from __future__ import annotations

from typing import Final

from vers_rlm_mcp.errors import PathRefused

WORKSPACE: Final = "/workspace"
"""Where commands start, and so where relative paths begin; see `Machine.spawn`."""


def check_path(path: str) -> None:
    """Raise `PathRefused` for what no backend takes as the path of a file."""
    if not path.startswith("/") or "\0" in path:
        raise PathRefused(f"{path!r} is not an absolute path; start it with {WORKSPACE}/.")
