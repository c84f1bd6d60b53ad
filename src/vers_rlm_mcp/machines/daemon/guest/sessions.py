"""Sessions of processes, and how all of one is killed."""

from __future__ import annotations

import os
import signal
import time

TRIES = 100
"""What a session starts while it is killed is found by looking again."""

BLINK = 0.001
"""Seconds between two looks: 0.1 in all for processes that cannot end yet."""


def kill(session: int) -> None:
    """Kill every process of a session, whose leader must not have been waited for."""
    for _ in range(TRIES):
        members = _members(session)
        if not members:
            return
        for pid in members:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:  # noqa: PERF203 - each may have ended
                continue
        time.sleep(BLINK)


def _members(session: int) -> list[int]:
    """The processes of a session that have not ended."""
    found: list[int] = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    # A name may hold anything; only what follows its last bracket counts.
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            # State, parent, group, session.
            if int(fields[3]) == session and fields[0] not in (b"Z", b"X"):
                found.append(int(name))
    return found
