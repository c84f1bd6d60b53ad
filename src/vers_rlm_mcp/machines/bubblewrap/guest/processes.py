"""The processes of the machine, as PID 1 sees them: lists, stops and resumes them."""

from __future__ import annotations

import os
import time

from ...daemon.guest.sessions import ENDED, send, stat, table

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
else:
    import _signal as signal  # see `sessions`

STOPPED = ENDED | frozenset("Tt")

PATIENCE = 2.0
"""Seconds that stopping everything may take. Milliseconds are usual."""

SETTLE = 0.1
"""Seconds after which a process that still waits in the kernel is taken as unable to run."""

BLINK = 0.0005
"""Seconds between two checks that processes have stopped: about the time that one takes."""


def threads() -> int:
    """How many threads all processes but PID 1 have: what limits on processes count."""
    return sum(_stat_field(pid, 17) for pid in table())


def kernel_time(pid: int) -> int:
    """How long a process has worked in the kernel, in clock ticks."""
    return _stat_field(pid, 12)


def _stat_field(pid: int, field: int) -> int:
    """A field of a process's ``stat`` file, counted from its state; 0 when it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[field])
    except OSError:
        return 0


def living() -> list[int]:
    """The processes that have not ended."""
    return [pid for pid, (state, _, _) in table().items() if state not in ENDED]


def _has_stopped(pid: int, *, waiting: bool) -> bool:
    """Whether no thread of a process can run; with `waiting`, one stuck in the kernel counts."""
    ended = STOPPED | {"D"} if waiting else STOPPED
    try:
        threads = os.listdir(f"/proc/{pid}/task")
        return all(stat(f"/proc/{pid}/task/{name}/stat")[0] in ended for name in threads)
    except (FileNotFoundError, ProcessLookupError):
        return True


class Unstoppable(Exception):
    """Some process of the machine could not be stopped in time."""


def stop_all() -> list[int]:
    """Stop every process and return those that were running until now.

    One that waits in the kernel for its vfork child stays in state D: it cannot run either.
    """
    stopped: list[int] = []
    deadline = time.monotonic() + PATIENCE
    settled = deadline - PATIENCE + SETTLE
    while True:
        rest = [pid for pid, (state, _, _) in table().items() if state not in STOPPED]
        fresh = [pid for pid in rest if pid not in stopped]
        for pid in rest:
            send(pid, signal.SIGSTOP)
        stopped += fresh
        now = time.monotonic()
        if not fresh and all(_has_stopped(pid, waiting=now > settled) for pid in stopped):
            return stopped
        if now > deadline:
            resume(stopped)
            raise Unstoppable
        time.sleep(BLINK)


def resume(pids: list[int]) -> None:
    """Resume stopped processes."""
    for pid in pids:
        send(pid, signal.SIGCONT)
