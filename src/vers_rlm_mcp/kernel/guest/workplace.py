"""The directory that cells work in."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager, suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Generator

ROOT = os.environ.get("MACHINE_ROOT", "")
"""The root of a machine that is only a directory, which is another one in each copy."""


def here() -> str:
    """The directory that this process is in, by a name that is valid in copies, too."""
    return os.getcwd().replace(ROOT, "", 1)


class Workplace:
    """The process is in this directory only while it acts, and in ``/`` otherwise.

    A machine made of layers can be copied at once while no process works in them; otherwise it
    replaces their mounts.
    """

    def __init__(self) -> None:
        self._path = os.getcwd()
        self._lock = threading.Lock()
        self._left = 0
        """How many calls, of as many threads, have left it."""
        os.chdir("/")

    @contextmanager
    def entered(self) -> Generator[None, None, None]:
        """Work in it. If it was deleted, stay in ``/``; the next command reports that."""
        self._enter()
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def left(self) -> Generator[None, None, None]:
        """Leave it for a moment, from within `entered`. Several threads may."""
        with self._lock:
            self._left += 1
            if self._left == 1:
                self._leave()
        try:
            yield
        finally:
            with self._lock:
                self._left -= 1
                if not self._left:
                    self._enter()

    def _enter(self) -> None:
        with suppress(OSError):
            os.chdir(self._path)

    def _leave(self) -> None:
        with suppress(OSError):
            self._path = os.getcwd()
        os.chdir("/")
