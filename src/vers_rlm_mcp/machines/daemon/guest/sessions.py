"""The processes of a job, and how what it started in the foreground is killed.

A job's process begins a session and bears a mark. Everything that it starts inherits the mark,
whatever its session, parent or environment: it is the soft limit on file locks (RLIMIT_LOCKS),
which Linux has not enforced since 2.4.25.
"""

from __future__ import annotations

import os
import time

try:
    from resource import prlimit
except ImportError:  # A minimal Python does without it: then the session alone tells.
    prlimit = None

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
else:
    import _signal as signal  # `signal` itself takes milliseconds to import

KILL_SECONDS = 2.0
"""How long killing a job may take; milliseconds are usual. What it starts in the meantime is found
by looking again, and a process that waits in the kernel cannot end yet."""

BLINK = 0.0005
"""Seconds between two looks: about what a look costs."""

ENDED = frozenset("ZX")
"""States of a process that has ended."""

MARK = 10
"""RLIMIT_LOCKS."""

UNMARKED = -1
"""The mark of what belongs to no job: no limit."""

HUP, QUIT, TERM = (1 << number - 1 for number in (1, 3, 15))
"""Signals in the masks of a ``status`` file."""


def stat(path: str) -> tuple[str, int, int, int]:
    """The state, parent, session and number of threads in a ``stat`` file."""
    with open(path, "rb") as file:
        # A name may hold anything; only what follows its last bracket counts.
        fields = file.read().rpartition(b")")[2].split()
    return fields[0].decode(), int(fields[1]), int(fields[3]), int(fields[17])


def table() -> dict[int, tuple[str, int, int]]:
    """State, parent and session of every process but PID 1."""
    found: dict[int, tuple[str, int, int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and name != "1":
            try:
                state, parent, session, threads = stat(f"/proc/{name}/stat")
                if state in ENDED and threads > 1:  # only its main thread has ended
                    state = _state_of_threads(name)
            except OSError:  # it has ended
                continue
            found[int(name)] = state, parent, session
    return found


def _state_of_threads(pid: str) -> str:
    """The state of a process whose main thread has ended."""
    states = [stat(f"/proc/{pid}/task/{name}/stat")[0] for name in os.listdir(f"/proc/{pid}/task")]
    return next((state for state in states if state not in ENDED), states[0])


def bear(mark: int, pid: int = 0) -> None:
    """Mark a process (0: this one), and so what it will start."""
    if prlimit:
        try:  # noqa: SIM105 - contextlib takes milliseconds to import
            prlimit(pid, MARK, (mark, prlimit(pid, MARK)[1]))
        except (OSError, ValueError):  # A lower hard limit, or it has ended.
            pass


def kill(leader: int, mark: int, *, reaped: bool) -> None:
    """Kill a job: its session, and what else it has started in the foreground.

    Args:
        leader: The process that began it, or is just about to.
        mark: What its processes bear.
        reaped: Whether the leader was waited for. Its number belongs to another process then, if
            there is one: while a session has members, no process gets its number.
    """
    session = 0 if reaped and os.path.exists(f"/proc/{leader}") else leader
    deadline = time.monotonic() + KILL_SECONDS
    while time.monotonic() < deadline:
        try:
            members = _members(session, mark)
        except OSError:  # There is no descriptor left, or no memory.
            members = None
        if members is not None and not members:
            return
        for pid in members or ():
            send(pid, signal.SIGKILL)
        time.sleep(BLINK)


def send(pid: int, number: int) -> None:
    """Send a signal; a process that is gone, or another user's, is no error."""
    try:  # noqa: SIM105 - contextlib takes milliseconds to import
        os.kill(pid, number)
    except OSError:
        pass


def _members(leader: int, mark: int) -> list[int]:
    """What belongs to a job and has not ended; the leader even before it has begun its session."""
    found: dict[int, int] = {}
    spared: set[int] = set()
    for pid, (state, parent, session) in table().items():
        if state in ENDED:
            continue
        own = leader in (pid, session)
        if own or _bears(pid, mark):
            found[pid] = parent
            if _is_in_background(pid, own=own):
                spared.add(pid)
    fresh = set(spared)
    while fresh:  # What these have started stays as well.
        fresh = {pid for pid, parent in found.items() if parent in fresh} - spared
        spared |= fresh
    return [pid for pid in found if pid not in spared]


def _bears(pid: int, mark: int) -> bool:
    try:
        return bool(prlimit) and prlimit(pid, MARK)[0] == mark
    except OSError:  # it has ended, or is another user's
        return False


def _is_in_background(pid: int, *, own: bool) -> bool:
    """Whether a process was put into the background on purpose: to outlive what started it.

    By ``&``, a shell makes a program ignore QUIT. In a session of its own (``setsid``), or also
    ignoring HUP (``nohup``), it is meant to stay. What ignores TERM as well only resists.
    """
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            ignored = next(int(line[8:], 16) for line in file if line.startswith(b"SigIgn:"))
    except (OSError, StopIteration):
        return False
    return bool(ignored & QUIT) and (not own or bool(ignored & HUP and not ignored & TERM))
