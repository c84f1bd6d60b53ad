"""The directory that cells work in."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Generator

ROOT = os.environ.get("MACHINE_ROOT", "")
"""Where a machine that is no more than a directory begins, which is elsewhere in each copy."""


def here() -> str:
    """The directory that this process is in, by the name that it has in copies, too."""
    return os.getcwd().replace(ROOT, "", 1)


class Workplace:
    """The process is in this directory only while it acts, and in ``/`` otherwise.

    A machine made of layers can be copied at once while nothing is at work in them, and puts other
    mounts in their place when it is.
    """

    def __init__(self) -> None:
        self._path = os.getcwd()
        os.chdir("/")

    @contextmanager
    def entered(self) -> Generator[None, None, None]:
        """Be there. Where it has been deleted, stay in ``/``: the next command says so."""
        self._enter()
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def left(self) -> Generator[None, None, None]:
        """Be elsewhere for a moment, from within `entered`."""
        self._leave()
        try:
            yield
        finally:
            self._enter()

    def _enter(self) -> None:
        with suppress(OSError):
            os.chdir(self._path)

    def _leave(self) -> None:
        with suppress(OSError):
            self._path = os.getcwd()
        os.chdir("/")
