"""The limit on memory, where no cgroup enforces it: the largest process is killed."""

from __future__ import annotations

import os

from ...daemon.guest.sessions import send
from . import processes

INTERVAL = 0.1
"""Seconds between two checks: some hundred MiB can be filled in that time."""

PAGE = os.sysconf("SC_PAGE_SIZE")
MIB = 1 << 20


class MemoryLimit:
    """Checks what all processes hold together.

    Args:
        limit: Bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.notice = processes.Notice()
        """What was last done to programs."""
        self.due = 0.0
        """When `check` wants to be called."""

    def check(self, now: float) -> None:
        """Kill the largest processes until the rest fits."""
        self.due = now + INTERVAL
        programs = processes.programs()
        if sum(map(_resident, programs)) <= self._limit:
            return
        sizes = {pid: _proportional(pid) for pid in programs}
        total = sum(sizes.values())
        while total > self._limit:
            largest = max(sizes, key=lambda pid: sizes[pid])
            self.notice.set(
                f"the machine's programs held more than its {self._limit // MIB} MiB of memory: "
                f"the largest, process {largest}, was killed"
            )
            send(largest, processes.SIGKILL)
            total -= sizes.pop(largest)

    def put_off(self, now: float) -> None:
        """Check again somewhat later, after an error."""
        self.due = now + INTERVAL


def _resident(pid: int) -> int:
    """Bytes of memory that a process holds, shared pages included. Quick to read."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            fields = file.read().split()
        return (int(fields[1]) - int(fields[2])) * PAGE
    except (OSError, IndexError):
        return 0


def _proportional(pid: int) -> int:
    """The same, with shared pages divided among their users. Slow to read."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            fields = dict(line.split(b":", 1) for line in file if b": " in line)
        return int(fields[b"Pss_Anon"].split()[0]) * 1024
    except (OSError, KeyError):
        return 0
