"""The processes of the machine, as PID 1 sees them: lists, stops and resumes them."""

from __future__ import annotations

import os
import time

from ...daemon.guest.sessions import ENDED, send, stat, table
from . import linux

SIGKILL = 9

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
else:
    import _signal as signal  # see `sessions`

STOPPED = ENDED | frozenset("Tt")

EVERY_PROCESS = -1
"""As the target of a signal of PID 1: all processes of the machine but itself, atomically."""

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


def programs() -> list[int]:
    """The processes that have not ended, except those that PID 1 forked for its own work."""
    ours = os.getsid(0)
    return [
        pid
        for pid, (state, _, session) in table().items()
        if state not in ENDED and session != ours
    ]


class Notice:
    """What a limit has done to programs, and when."""

    def __init__(self) -> None:
        self.at = 0
        """By the monotonic clock, in nanoseconds."""
        self.text = ""

    def set(self, text: str) -> None:
        """Note what was just done."""
        self.at, self.text = time.monotonic_ns(), text


def views(pid: int) -> list[str]:
    """Directories in /proc that together show all that a process has open.

    A thread may have descriptors of its own, and a main thread that has ended shows none.
    """
    try:
        names = os.listdir(f"/proc/{pid}/task")
    except OSError:  # it has ended
        return []
    seen: list[int] = []
    for thread in map(int, names):
        if not any(linux.shares_files(thread, other) for other in seen):
            seen.append(thread)
    return [f"/proc/{pid}/task/{thread}" for thread in seen]


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

    One signal reaches all at once, and what they are about to fork. A process that waits in the
    kernel for its vfork child stays in state D: it cannot run either.
    """
    held = {pid for pid, (state, _, _) in table().items() if state in STOPPED - ENDED}
    deadline = time.monotonic() + PATIENCE
    settled = deadline - PATIENCE + SETTLE
    while True:
        send(EVERY_PROCESS, signal.SIGSTOP)
        running = [pid for pid in living() if pid not in held]
        now = time.monotonic()
        if all(_has_stopped(pid, waiting=now > settled) for pid in running):
            return running
        if now > deadline:
            resume(running)
            raise Unstoppable
        time.sleep(BLINK)


class Hold:
    """Keeps all programs from running, and so from starting others, until it is released."""

    def __init__(self) -> None:
        states = table()
        self._stopped = [pid for pid, (state, _, _) in states.items() if state == "T"]
        send(EVERY_PROCESS, signal.SIGSTOP)
        ours = os.getsid(0)
        for pid, (_, _, session) in states.items():
            if session == ours:  # PID 1 has forked it for its own work.
                send(pid, signal.SIGCONT)

    def release(self) -> None:
        """Let them run again, except those that were stopped before."""
        send(EVERY_PROCESS, signal.SIGCONT)
        for pid in self._stopped:
            send(pid, signal.SIGSTOP)


def resume(pids: list[int]) -> None:
    """Resume stopped processes."""
    for pid in pids:
        send(pid, signal.SIGCONT)
