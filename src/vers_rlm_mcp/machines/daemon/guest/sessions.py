"""Sessions of processes, and how all of one is killed."""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
else:
    import _signal as signal  # `signal` itself takes milliseconds to import

KILL_SECONDS = 2.0
"""How long killing a session may take; milliseconds are usual. What it starts in the meantime is
found by looking again, and a process that waits in the kernel cannot end yet."""

BLINK = 0.0005
"""Seconds between two looks: about what a look costs."""

ENDED = frozenset("ZX")
"""States of a process that has ended."""


def stat(path: str) -> tuple[str, int, int]:
    """The state, parent and session of a process or thread, from its ``stat`` file."""
    with open(path, "rb") as file:
        # A name may hold anything; only what follows its last bracket counts.
        fields = file.read().rpartition(b")")[2].split()
    return fields[0].decode(), int(fields[1]), int(fields[3])


def table() -> dict[int, tuple[str, int, int]]:
    """State, parent and session of every process but PID 1."""
    found: dict[int, tuple[str, int, int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and name != "1":
            try:
                found[int(name)] = stat(f"/proc/{name}/stat")
            except OSError:  # it has ended
                continue
    return found


def kill(leader: int, *, reaped: bool) -> None:
    """Kill every process of a session.

    Args:
        leader: The process that began it, or is just about to.
        reaped: Whether the leader was waited for. Its number belongs to another process then, if
            there is one: while a session has members, no process gets its number.
    """
    if reaped and os.path.exists(f"/proc/{leader}"):
        return
    deadline = time.monotonic() + KILL_SECONDS
    while (members := _members(leader)) and time.monotonic() < deadline:
        for pid in members:
            send(pid, signal.SIGKILL)
        time.sleep(BLINK)


def send(pid: int, number: int) -> None:
    """Send a signal; a process that is gone is no error."""
    try:  # noqa: SIM105 - contextlib takes milliseconds to import
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _members(leader: int) -> list[int]:
    """The members of a session that have not ended; the leader even before it has begun it."""
    return [
        pid
        for pid, (state, _, session) in table().items()
        if leader in (pid, session) and state not in ENDED
    ]
