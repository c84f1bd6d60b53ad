"""Shell commands in the machine of the kernel."""

from __future__ import annotations

import os
import select
import subprocess
import threading
import time
from contextlib import suppress

from ..sessions import UNMARKED, bear, kill
from .capture import HeadTail
from .concurrency import is_cancelled
from .memory import lift

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LIMIT = 8 * 1024 * 1024
"""Bytes kept of each of the two outputs: enough for any text that code goes through."""

READ_SIZE = 256 * 1024

EXIT_POLL_SECONDS = 0.02
"""How long the end of a command whose children keep its pipes open may go unnoticed."""

_starting = threading.Lock()
"""Held while the kernel bears the mark of a command, which what it starts inherits."""


def run(command: str, timeout: float | None) -> dict[str, Any]:
    """Run `command` with a shell, in its own session, and wait until it has ended.

    Returns `stdout`, `stderr` and `exit_code`; the latter is None when the time was up and the
    command killed, along with what it had started in the foreground. What it left in the background
    keeps running; its output is discarded.
    """
    mark = time.monotonic_ns()
    with _starting:
        bear(mark)
        try:
            process = subprocess.Popen(
                ["bash" if os.path.exists("/bin/bash") else "sh", "-c", os.fsencode(command)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
            )
        finally:
            bear(UNMARKED)
    lift(process.pid)  # other programs map much that they never use
    outputs = _Outputs(process)
    try:
        ended = outputs.collect(None if timeout is None else time.monotonic() + timeout)
    except BaseException:
        _kill(process, mark)
        raise
    finally:
        outputs.release()
    if not ended:
        _kill(process, mark)
    return {
        "stdout": outputs.captured[0].text(),
        "stderr": outputs.captured[1].text(),
        "exit_code": process.returncode if ended else None,
    }


def _kill(process: subprocess.Popen[bytes], mark: int) -> None:
    kill(process.pid, mark, reaped=process.returncode is not None)
    process.wait()


class _Outputs:
    """The two pipes of a command."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.captured = (HeadTail(LIMIT), HeadTail(LIMIT))
        self._process = process
        self._open: dict[int, HeadTail] = {}
        self._poll = select.poll()
        for pipe, captured in zip((process.stdout, process.stderr), self.captured):
            assert pipe
            os.set_blocking(pipe.fileno(), False)
            self._open[pipe.fileno()] = captured
            self._poll.register(pipe.fileno(), select.POLLIN)

    def collect(self, deadline: float | None) -> bool:
        """Read until the command has ended. False when the deadline came, or nothing waits."""
        while self._process.poll() is None:
            rest = None if deadline is None else deadline - time.monotonic()
            if is_cancelled() or (rest is not None and rest <= 0):
                return False
            if self._open:
                self._read_ready(EXIT_POLL_SECONDS)
            else:
                self._wait(EXIT_POLL_SECONDS)
        while self._open and self._read_ready(0):
            pass
        return True

    def _wait(self, seconds: float | None) -> None:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)

    def _read_ready(self, seconds: float) -> bool:
        """Read what comes within `seconds`. False when nothing did."""
        ready = self._poll.poll(seconds * 1000)
        for descriptor, _ in ready:
            data = os.read(descriptor, READ_SIZE)
            self._open[descriptor].add(data)
            if not data:
                self._poll.unregister(descriptor)
                del self._open[descriptor]
        return bool(ready)

    def release(self) -> None:
        """Close the pipes that have ended; discard what background children write to the others."""
        for pipe in (self._process.stdout, self._process.stderr):
            assert pipe
            if pipe.fileno() in self._open:
                os.set_blocking(pipe.fileno(), True)
                threading.Thread(target=_discard, args=(pipe,), daemon=True).start()
            else:
                pipe.close()


def _discard(pipe: Any) -> None:
    with pipe:
        while pipe.read(READ_SIZE):
            pass
