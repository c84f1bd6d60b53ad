"""Keeping the machine within its limits, as far as the kernel does not.

Memory: when all processes together hold too much, the largest is killed. Disk: when too much has
been written, the programs that have files open for writing get SIGXFSZ, the kernel's own way to
say so, and are killed if they go on.
"""

from __future__ import annotations

import os
import time

from . import tasks

MEMORY_INTERVAL = 0.1
"""Seconds between two looks at memory: some hundred MiB can be filled in that time."""

DISK_INTERVAL = 1.0
"""Seconds between two looks at the disk, at the least."""

DISK_SHARE = 20
"""Looking may take one part of so many of the time: many small files are looked at less often."""

NEVER = -1
SIGXFSZ = 25
SIGKILL = 9
PAGE = os.sysconf("SC_PAGE_SIZE")
BLOCK = 512
"""Bytes of what `st_blocks` counts."""


class Watch:
    """Looks at memory and disk from time to time. A limit of 0 is not watched."""

    def __init__(self, memory: int, disk: int) -> None:
        self._memory = memory
        self._disk = disk
        self._memory_due = self._disk_due = 0.0
        self._counting = -1
        """Where a child tells how much has been written, while it counts."""
        self._warned: set[int] = set()
        self.full = False
        """Whether all has been written that may be."""

    @property
    def interval(self) -> int:
        """Milliseconds until the next look."""
        if not (self._memory or self._disk):
            return NEVER
        due = min(self._memory_due or self._disk_due, self._disk_due or self._memory_due)
        return max(1, int((due - time.monotonic()) * 1000))

    def look(self, mounts: set[int]) -> None:
        """Look at what is due; `mounts` are what may be written."""
        now = time.monotonic()
        if self._memory and now >= self._memory_due:
            self._look_at_memory()
            self._memory_due = now + MEMORY_INTERVAL
        if self._disk and now >= self._disk_due:
            self._look_at_disk(mounts, now)

    def _look_at_memory(self) -> None:
        sizes = {pid: _resident(pid) for pid in tasks.living()}
        total = sum(sizes.values())
        while total > self._memory:
            largest = max(sizes, key=lambda pid: sizes[pid])
            tasks.signal(largest, SIGKILL)
            total -= sizes.pop(largest)

    def _look_at_disk(self, mounts: set[int], now: float) -> None:
        """Start counting in a child, or take note of what one has counted."""
        if self._counting < 0:
            self._counting = _count("machine/up")
            self._disk_due = now + MEMORY_INTERVAL
            return
        try:
            size, took = os.read(self._counting, 100).split()
        except BlockingIOError:
            self._disk_due = now + MEMORY_INTERVAL
            return
        except ValueError:  # The child was killed.
            size, took = b"0", b"0"
        os.close(self._counting)
        self._counting = -1
        self._disk_due = now + max(DISK_INTERVAL, float(took) * DISK_SHARE)
        self.full = int(size) > self._disk
        if self.full:
            self._stop_writers(mounts)
        else:
            self._warned.clear()

    def _stop_writers(self, mounts: set[int]) -> None:
        for pid in tasks.living():
            if _writes(pid, mounts):
                tasks.signal(pid, SIGKILL if pid in self._warned else SIGXFSZ)
                self._warned.add(pid)


def _resident(pid: int) -> int:
    """Bytes of memory that only a process itself holds."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            fields = file.read().split()
        return (int(fields[1]) - int(fields[2])) * PAGE
    except (OSError, IndexError):
        return 0


def _writes(pid: int, mounts: set[int]) -> bool:
    """Whether a process has a file of these mounts open for writing."""
    try:
        for number in os.listdir(f"/proc/{pid}/fd"):
            with open(f"/proc/{pid}/fdinfo/{number}", "rb") as file:
                about = dict(line.split(b":", 1) for line in file if b":" in line)
            writable = int(about[b"flags"], 8) & os.O_ACCMODE != os.O_RDONLY
            if writable and int(about[b"mnt_id"]) in mounts:
                return True
    except (OSError, KeyError):
        pass  # It has ended, or closed the file.
    return False


def _count(directory: str) -> int:
    """Let a child count the bytes below a directory; returns where it tells, not blocking."""
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    if os.fork():
        os.close(writing)
        return reading
    try:
        start = time.monotonic()
        total = _size(directory)
        os.write(writing, b"%d %.3f" % (total, time.monotonic() - start))
    finally:
        os._exit(0)


def _size(directory: str) -> int:
    total = 0
    pending = [directory]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    info = entry.stat(follow_symlinks=False)
                    total += info.st_blocks * BLOCK // max(1, info.st_nlink)
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
        except OSError:  # noqa: PERF203 - each may be removed meanwhile
            continue
    return total
