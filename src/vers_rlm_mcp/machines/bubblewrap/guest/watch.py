"""The limits on memory and disk that the kernel does not enforce.

Memory: when all processes together hold too much, the largest is killed. Disk: when too much has
been written, frozen layers included, no program may make a file larger until there is room again:
it gets SIGXFSZ or EFBIG, as for any other limit on the size of files. A program that lifts this
limit and keeps writing is killed. If the disk still grows, by files without content or through
mapped memory, the process that works most in the kernel is killed.

What was written is counted file by file, which takes a while. So between counts the free space of
the host's disk is checked: a count starts when it has shrunk by much of the room that is left.
"""

from __future__ import annotations

import os
import resource
import stat
import time

from ...daemon.guest.sessions import ENDED, send, table
from . import processes

MEMORY_INTERVAL = 0.1
"""Seconds between two checks of memory: some hundred MiB can be filled in that time."""

DISK_INTERVAL = 1.0
"""Seconds between two counts, and the most between two checks of the free space."""

GLANCE = 0.01
"""The least seconds between two checks of the host's free space, which take microseconds."""

FASTEST = 1 << 31
"""Bytes a second that are written at most: with less room, the free space is checked sooner."""

MUCH = 4
"""A count is due when 1/MUCH of the room is gone."""

DISK_SHARE = 20
"""Counting takes 1/DISK_SHARE of the time at most: many small files are counted less often."""

URGENT_SHARE = 4
"""The same while the disk fills."""

SLACK = 8
"""A full disk may grow by 1/SLACK of its size before the busiest process is killed."""

PASSES = 3
"""Scans for processes to limit: one may have started with its parent's old limit."""

UNSETTLED = -1
"""Placeholder for the size allowed to a full disk while earlier writes still complete."""

MOST_MISSED = 3
"""After so many failed counts, the disk counts as full until one succeeds."""

NEVER = -1
SIGKILL = 9
PAGE = os.sysconf("SC_PAGE_SIZE")
BLOCK = 512
"""Bytes of what `st_blocks` counts."""

ENTRY = 4096
"""Bytes that every file counts as, at least: the host's inodes are limited, too."""

MIB = 1 << 20

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .overlays import Overlay


class Watch:
    """Checks memory and disk periodically. A limit of 0 is not checked."""

    def __init__(self, memory: int, disk: int, overlays: list[Overlay]) -> None:
        self._memory = memory
        self._disk = disk
        self._overlays = overlays
        self._memory_due = self._disk_due = 0.0
        self._count_due = self._urgent_due = 0.0
        self._counting = -1
        """The pipe from the child that counts; -1 if none does."""
        self._written = 0
        self._free = 0
        """Free space of the host's disk when the last count began."""
        self._layers: set[str] = set()
        """The frozen layers that were counted already: they do not change."""
        self._frozen = 0
        """Bytes in them."""
        self._missed = 0
        """Failed counts in a row."""
        self._most = UNSETTLED
        """Bytes to which a full disk may grow before processes are killed."""
        self._limited: set[int] = set()
        """The processes that may not make files larger, because the disk is full."""
        self._busy: dict[int, int] = {}
        self.touched = False
        """Whether a program was started since the last count, and may have written something."""
        self.full = False
        """Whether the limit on the disk is exceeded."""

    @property
    def interval(self) -> int:
        """Milliseconds until the next check is due."""
        if not (self._memory or self._disk):
            return NEVER
        due = min(self._memory_due or self._disk_due, self._disk_due or self._memory_due)
        return max(1, int((due - time.monotonic()) * 1000))

    @property
    def fullness(self) -> str:
        """The error message if the disk is full, else an empty text."""
        if not self.full:
            return ""
        text = (
            f"the machine has written all that it may: {self._written // MIB} MiB, and "
            f"{self._disk // MIB} are allowed"
        )
        if self._frozen * 2 > self._disk:
            text += (
                f"; {self._frozen // MIB} of them are frozen in commits, which deleting files does "
                "not free, so continue in a new machine or from an earlier commit"
            )
        return text

    def look(self) -> None:
        """Perform the checks that are due. An error ends only this round of them."""
        try:
            self._check(time.monotonic())
        except OSError:  # No process or descriptor is left, which must not end PID 1.
            soon = time.monotonic() + MEMORY_INTERVAL
            self._memory_due = soon if self._memory else 0.0
            self._disk_due = soon

    def _check(self, now: float) -> None:
        if self._memory and now >= self._memory_due:
            self._check_memory()
            self._memory_due = now + MEMORY_INTERVAL
        if self._disk and now >= self._disk_due:
            if self._counting >= 0:
                self._read_count(now)
            else:
                self._start_count_if_due(now)

    def _check_memory(self) -> None:
        programs = _programs()
        if sum(map(_resident, programs)) <= self._memory:
            return
        sizes = {pid: _proportional(pid) for pid in programs}
        total = sum(sizes.values())
        while total > self._memory:
            largest = max(sizes, key=lambda pid: sizes[pid])
            send(largest, SIGKILL)
            total -= sizes.pop(largest)

    def _start_count_if_due(self, now: float) -> None:
        """Start a count if one is due."""
        room = max(0, self._disk - self._written)
        self._disk_due = now + max(GLANCE, min(room / FASTEST, DISK_INTERVAL))
        free = _free()
        filling = self._free - free > room // MUCH
        if now < (self._urgent_due if filling else self._count_due):
            return
        self._free = free
        if not (self.full or self.touched or _programs()):
            self._count_due = now + DISK_INTERVAL
            return
        self.touched = False
        frozen = {path for overlay in self._overlays for path in overlay.frozen}
        if not self._layers <= frozen:  # Some were merged into one.
            self._layers.clear()
            self._frozen = 0
        devices = {overlay.device for overlay in self._overlays}
        self._counting = _count(["machine/up"], sorted(frozen - self._layers), devices)
        self._layers |= frozen
        self._disk_due = now + GLANCE

    def _read_count(self, now: float) -> None:
        """Act on the child's count once it is available."""
        try:
            result = os.read(self._counting, 100).split()
        except BlockingIOError:
            self._disk_due = now + GLANCE
            return
        os.close(self._counting)
        self._counting = -1
        self._disk_due = now
        if not result:
            self._miss_count()
            return
        self._missed = 0
        upper, frozen, took = int(result[0]), int(result[1]), float(result[2])
        self._frozen += frozen
        self._urgent_due = now + took * URGENT_SHARE
        least = MEMORY_INTERVAL if self.full else DISK_INTERVAL
        self._count_due = now + max(least, took * DISK_SHARE)
        self._apply_limit(upper + self._frozen)

    def _miss_count(self) -> None:
        """The child was killed. Any program can do that, and must not escape the limit by it."""
        self._layers.clear()
        self._frozen = 0
        self._missed += 1
        if self._missed >= MOST_MISSED:
            self._apply_limit(self._disk + 1)

    def _apply_limit(self, written: int) -> None:
        """Refuse writes or allow them again, given the number of bytes that are written."""
        grown = written > self._written
        self._written = written
        was_full, self.full = self.full, written > self._disk
        if not self.full:
            if was_full:
                self._allow_writes()
            return
        self._refuse_writes()
        before, self._busy = self._busy, {pid: processes.kernel_time(pid) for pid in _programs()}
        if not was_full:
            # Writes that began before the limit was set complete, and the count is older still. The
            # next count includes all of them.
            self._most = UNSETTLED
            self._urgent_due = self._count_due = time.monotonic() + MEMORY_INTERVAL
        elif self._most == UNSETTLED:
            self._most = written + self._disk // SLACK
        elif grown and written > self._most:
            _kill_busiest(before, self._busy)

    def _refuse_writes(self) -> None:
        """Limit the files of all processes. Kill those that have lifted this limit and write."""
        mounts = {number for overlay in self._overlays for number in overlay.mounts}
        seen: set[int] = set()
        for _ in range(PASSES):
            fresh = set(_programs()) - seen
            for pid in fresh:
                if pid in self._limited and _file_limit(pid) > 0 and _writes(pid, mounts):
                    send(pid, SIGKILL)
                _limit_files(pid, 0)
            seen |= fresh
        self._limited = seen

    def _allow_writes(self) -> None:
        for pid in _programs():
            _limit_files(pid, self._disk)
        self._limited.clear()
        self._busy.clear()


def _programs() -> list[int]:
    """The processes of the machine, except those that PID 1 forked for its own work."""
    ours = os.getsid(0)
    return [
        pid
        for pid, (state, _, session) in table().items()
        if state not in ENDED and session != ours
    ]


def _kill_busiest(before: dict[int, int], now: dict[int, int]) -> None:
    """Kill the process that has worked most in the kernel between two counts, if any did."""
    worked = {pid: ticks - before.get(pid, 0) for pid, ticks in now.items()}
    busiest = max(worked, key=lambda pid: worked[pid], default=0)
    if worked.get(busiest):
        send(busiest, SIGKILL)


def _free() -> int:
    """Free space of the host's disk: bytes, plus free inodes at `ENTRY` bytes each."""
    about = os.statvfs("machine")
    return about.f_bfree * about.f_frsize + about.f_ffree * ENTRY


def _file_limit(pid: int) -> int:
    try:
        return resource.prlimit(pid, resource.RLIMIT_FSIZE)[0]
    except OSError:
        return 0


def _limit_files(pid: int, size: int) -> None:
    """Set the soft limit on the size of a process's files. The hard limit stays, to undo this."""
    try:
        hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (min(size, hard), hard))
    except OSError:
        pass  # It has ended.


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


def _count(upper: list[str], frozen: list[str], devices: set[int]) -> int:
    """Count the bytes in two groups of directories in a child, and measure how long it takes.

    Open files without a name count with the first group. Returns the non-blocking pipe that the
    child writes its result to.
    """
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
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # Two for each level of depth.
        sizes = (sum(map(_size, upper)) + _unnamed(devices), sum(map(_size, frozen)))
        os.write(writing, b"%d %d %.3f" % (*sizes, time.monotonic() - start))
    finally:
        os._exit(0)


def _size(directory: str) -> int:
    """Bytes below a directory that programs may change at the same time.

    Walks by descriptors: a path could be too long, or lead elsewhere by now. Raises OSError if the
    tree is deeper than the number of descriptors that a process may have.
    """
    total = 0
    top = os.open(directory, DIRECTORY)
    stack = [(top, os.scandir(top))]
    while stack:
        descriptor, entries = stack[-1]
        entry = next(entries, None)
        if entry is None:
            stack.pop()
            os.close(descriptor)
            continue
        try:
            info = entry.stat(follow_symlinks=False)
            total += _weight(info)
            if stat.S_ISDIR(info.st_mode):
                below = os.open(entry.name, DIRECTORY, dir_fd=descriptor)
                stack.append((below, os.scandir(below)))
        except (FileNotFoundError, NotADirectoryError):
            continue  # It was removed or replaced in the meantime.
    return total


def _weight(info: os.stat_result) -> int:
    return max(ENTRY, info.st_blocks * BLOCK) // max(1, info.st_nlink)


def _unnamed(devices: set[int]) -> int:
    """Bytes in files on these devices that were removed while a process has them open."""
    found: dict[tuple[int, int], int] = {}
    for pid in processes.living():
        try:
            for number in os.listdir(f"/proc/{pid}/fd"):
                info = os.stat(f"/proc/{pid}/fd/{number}")
                if info.st_nlink == 0 and info.st_dev in devices:
                    found[info.st_dev, info.st_ino] = _weight(info)
        except OSError:  # noqa: PERF203 - each may end, or close what it has open
            continue
    return sum(found.values())
