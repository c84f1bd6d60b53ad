"""The backends whose machines are held against the model: one entry each."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from vers_rlm_mcp.machines.bubblewrap import BubblewrapBackend
from vers_rlm_mcp.testing import FakeBackend

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vers_rlm_mcp.machines import Backend, Capabilities


@dataclass(frozen=True, slots=True)
class Subject:
    """A backend, and what its file systems are like."""

    name: str
    open: Callable[[Path], Backend]
    """Makes a backend object over a directory, the same state each time."""
    copies_up: bool
    """Whether a file is copied when it is first changed after a commit, which parts its names."""
    obeys_modes: Callable[[], bool] = lambda: False
    """Whether a file's mode keeps the machine's user from reading or writing it."""
    merge_layers: int | None = None
    """How many layers are made one, where that is to be tried more often than usual."""
    rests: tuple[str, ...] = ()
    """Directories of the state that are empty when no machine and no commit is left."""


BUBBLEWRAP: Final = Subject(
    "bubblewrap",
    BubblewrapBackend,
    copies_up=True,
    rests=tuple(f"bubblewrap/{name}" for name in ("machines", "layers", "commits", "trash")),
)

FAKE: Final = Subject(
    "fake",
    FakeBackend,
    copies_up=False,
    obeys_modes=lambda: os.geteuid() != 0,
    rests=("machines", "commits", "making"),
)

SUBJECTS: Final = (
    BUBBLEWRAP,
    replace(BUBBLEWRAP, name="bubblewrap that merges", merge_layers=2),
    FAKE,
)


def tree_roots(capabilities: Capabilities) -> tuple[str, ...]:
    """Directories for trees in a machine: on file systems of their own where there are several."""
    return ("/workspace/tree", "/usr/local/tree" if capabilities.root else "/tmp/tree")
