"""Standard streams that a command does not depend on: a reader may leave, stall or never be there.

Work that is paid for neither ends nor waits because a pipe is closed or full, a terminal hangs up,
or a disk is full.
"""

from __future__ import annotations

import atexit
import os
import sys
from contextlib import suppress
from queue import Full, Queue
from threading import Event, Thread
from typing import IO, TYPE_CHECKING, Any, Final, TextIO, cast

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_PENDING: Final = 10_000
"""Pieces of progress that are held for a reader that stalls. Later ones are left out."""

DRAIN_SECONDS: Final = 1.0
"""How long a command waits at its end for a reader that stalls."""

LEFT_OUT: Final = "[progress was left out here, since nothing read it]\n"


class _Stream:
    """A text stream in place of another, whose other attributes it has."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Output(_Stream):
    """Standard output. Once a write has failed, with `problem`, the rest is dropped."""

    problem: Exception | None = None

    def write(self, text: str) -> int:
        """Write, unless a write has failed."""
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Hand what was written to the operating system, unless a write has failed."""
        self._attempt(self._stream.flush)

    def _attempt(self, act: Callable[[], object]) -> None:
        if self.problem:
            return
        try:
            act()
        except (OSError, ValueError) as error:
            self.problem = error
            with suppress(OSError):  # what is buffered must not fail again when Python exits
                _open_null(self._stream.fileno(), os.O_WRONLY)


class Progress(_Stream):
    """Standard error, written by a thread: writing to it never fails and never waits."""

    def __init__(self, stream: IO[str]) -> None:
        super().__init__(stream)
        self._pending: Queue[str | Event] = Queue(MAX_PENDING)
        self._has_lost = False
        Thread(target=self._write_pending, name="stderr", daemon=True).start()

    def write(self, text: str) -> int:
        """Have it written, or leave it out if too much is pending."""
        try:
            if self._has_lost and self._pending.qsize() < MAX_PENDING // 2:
                self._has_lost = False
                self._pending.put_nowait(LEFT_OUT)
            if not self._has_lost:
                self._pending.put_nowait(text)
        except Full:
            self._has_lost = True
        return len(text)

    def flush(self) -> None:
        """Nothing: the thread flushes what it writes."""

    def drain(self) -> None:
        """Wait for what is pending, but not long."""
        done = Event()
        with suppress(Full):
            self._pending.put(done, timeout=DRAIN_SECONDS)
            done.wait(DRAIN_SECONDS)

    def _write_pending(self) -> None:
        while True:
            item = self._pending.get()
            if isinstance(item, Event):
                item.set()
                continue
            with suppress(OSError, ValueError):  # no one can be told
                self._stream.write(item)
                self._stream.flush()


def protect() -> Output:
    """Put `Progress` and `Output`, which is returned, in place of the standard streams."""
    # Otherwise a file that is opened later would become a standard stream.
    for number, mode in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            _open_null(number, mode)
    # Python has no stream where there was no descriptor. Writing to this standard output fails.
    output = Output(cast("IO[str] | None", sys.stdout) or _writer(1))
    progress = Progress(cast("IO[str] | None", sys.stderr) or _writer(2))
    sys.stdout, sys.stderr = cast("TextIO", output), cast("TextIO", progress)
    atexit.register(progress.drain)
    return output


def _writer(descriptor: int) -> IO[str]:
    return open(descriptor, "w", encoding="utf-8", closefd=False)


def _open_null(number: int, mode: int) -> None:
    """Open /dev/null as this descriptor."""
    descriptor = os.open(os.devnull, mode)
    if descriptor != number:
        os.dup2(descriptor, number)
        os.close(descriptor)
