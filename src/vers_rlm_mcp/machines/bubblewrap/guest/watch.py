"""Keeping the machine within its limits, as far as the kernel does not.

Memory: when all processes together hold too much, the largest is killed. Disk: when too much has
been written, no program may make a file larger until there is room again: it gets SIGXFSZ or EFBIG,
the kernel's own ways to say so. One that lifts this limit again and goes on is killed.
"""

from __future__ import annotations

import os
import resource
import time

from . import tasks

MEMORY_INTERVAL = 0.1
"""Seconds between two looks at memory: some hundred MiB can be filled in that time."""

DISK_INTERVAL = 1.0
"""Seconds between two looks at a disk with much room and few files."""

FASTEST = 1 << 29
"""Bytes a second that are expected to be written at most: with less room, we look sooner."""

DISK_SHARE = 20
"""Looking may take one part of so many of the time: many small files are looked at less often."""

NEVER = -1
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
        self.touched = False
        """Whether something was started since the last count, so that more may be written."""
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
        """Look at what is due; `mounts` are what may be written. An error ends this look only."""
        try:
            self._look(mounts, time.monotonic())
        except OSError:  # No process or descriptor is left: that must not end PID 1.
            soon = time.monotonic() + MEMORY_INTERVAL
            self._memory_due = soon if self._memory else 0.0
            self._disk_due = soon

    def _look(self, mounts: set[int], now: float) -> None:
        if self._memory and now >= self._memory_due:
            self._look_at_memory()
            self._memory_due = now + MEMORY_INTERVAL
        if self._disk and now >= self._disk_due:
            self._look_at_disk(mounts, now)

    def _look_at_memory(self) -> None:
        if sum(map(_resident, tasks.living())) <= self._memory:
            return
        sizes = {pid: _proportional(pid) for pid in tasks.living()}
        total = sum(sizes.values())
        while total > self._memory:
            largest = max(sizes, key=lambda pid: sizes[pid])
            tasks.signal(largest, SIGKILL)
            total -= sizes.pop(largest)

    def _look_at_disk(self, mounts: set[int], now: float) -> None:
        """Start counting in a child, or take note of what one has counted."""
        if self._counting < 0:
            if not (self.full or self.touched or tasks.living()):
                self._disk_due = now + DISK_INTERVAL
                return
            self.touched = False
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
        soon = max(0.0, (self._disk - int(size)) / FASTEST)
        wait = max(MEMORY_INTERVAL, min(soon, DISK_INTERVAL), float(took) * DISK_SHARE)
        self._disk_due = now + wait
        was_full, self.full = self.full, int(size) > self._disk
        if self.full:
            self._stop_writers(mounts)
        elif was_full:
            self._let_write()

    def _stop_writers(self, mounts: set[int]) -> None:
        for pid in tasks.living():
            if pid in self._warned and _writes(pid, mounts) and _file_limit(pid) > 0:
                tasks.signal(pid, SIGKILL)
            self._warned.add(pid)
            _limit_files(pid, 0)

    def _let_write(self) -> None:
        for pid in tasks.living():
            _limit_files(pid, self._disk)
        self._warned.clear()


def _file_limit(pid: int) -> int:
    try:
        return resource.prlimit(pid, resource.RLIMIT_FSIZE)[0]
    except OSError:
        return 0


def _limit_files(pid: int, size: int) -> None:
    """Set how large a process may make a file, as far as its hard limit lets us take it back."""
    try:
        hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (min(size, hard), hard))
    except OSError:
        pass  # It has ended.


def _resident(pid: int) -> int:
    """Bytes of memory that a process holds, with what it shares with its forks: quickly told."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            fields = file.read().split()
        return (int(fields[1]) - int(fields[2])) * PAGE
    except (OSError, IndexError):
        return 0


def _proportional(pid: int) -> int:
    """The same, where what several share is counted once: this takes the kernel a while."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            fields = dict(line.split(b":", 1) for line in file if b": " in line)
        return int(fields[b"Pss_Anon"].split()[0]) * 1024
    except (OSError, KeyError):
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
    try:
        child = os.fork()
    except OSError:
        os.close(reading)
        os.close(writing)
        raise
    if child:
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
