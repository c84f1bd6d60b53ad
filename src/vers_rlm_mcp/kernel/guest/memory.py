"""Lets cells run out of memory before the machine does: a MemoryError costs no variable.

A machine kills the process that takes more memory than there is. So while a cell runs, the kernel
and what cells start hold themselves to somewhat less, in the system's count of data: memory that
may be written and belongs to one process. Stacks of threads count as a whole, though hardly any of
that is ever used; they are allowed for.
"""

from __future__ import annotations

import resource
import threading
from contextlib import contextmanager, suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Generator

SHARE = 7 / 8
"""The share of the machine's memory that cells may take; the rest is for other processes."""

STACK = 8 * 1024 * 1024
"""Bytes of a thread's stack, unless another size was asked for."""

_AT_FIRST = resource.getrlimit(resource.RLIMIT_DATA)


def lift(pid: int = 0) -> None:
    """Lift the limit of a process (0: this one), for what must not fail."""
    with suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_DATA, _AT_FIRST)


class MemoryBound:
    """Bounds what the process may hold while a cell runs, if the machine's memory is known."""

    def __init__(self) -> None:
        self._bytes: int | None = None
        self._holds = False
        self._count_threads()

    def set(self, machine: int | None) -> None:
        """Set how many bytes of memory the machine has; None if that is not known."""
        self._bytes = None if machine is None else int(machine * SHARE)

    @contextmanager
    def held(self) -> Generator[None, None, None]:
        """Hold the process to the bound: for the code of cells and what they could not survive."""
        if self._holds:
            yield
            return
        self._holds = True
        self._limit(threading.active_count())
        try:
            yield
        finally:
            self._holds = False
            lift()

    def advice(self) -> str:
        """What to do about a MemoryError."""
        if self._bytes is None:
            return ""
        return (
            f"\n[cells may hold {self._bytes >> 20:,} MiB at once: work on smaller pieces, and "
            "`del` what is no longer needed]"
        )

    def _count_threads(self) -> None:
        """Allow for the stack of each thread before it starts; no event reports all of them."""
        start = threading.Thread.start

        def counted(thread: threading.Thread) -> None:
            if self._holds:
                self._limit(threading.active_count() + 1)
            start(thread)

        setattr(threading.Thread, "start", counted)  # noqa: B010 - a type checker would object

    def _limit(self, threads: int) -> None:
        if self._bytes is not None:
            with suppress(ValueError):  # it is held to less than that already
                hard = _AT_FIRST[1]
                resource.setrlimit(resource.RLIMIT_DATA, (self._bytes + threads * STACK, hard))
