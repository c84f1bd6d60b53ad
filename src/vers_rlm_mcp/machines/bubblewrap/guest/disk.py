"""The limit on the disk, where the kernel enforces none.

When too much has been written, frozen layers included, no program may make a file larger until
there is room again: it gets SIGXFSZ or EFBIG, as for any other limit on the size of files. A
program that lifts this limit and keeps writing is killed. If the disk still grows, by files without
content or through mapped memory, the process that works most in the kernel is killed, and where
that does not help, all of them.

What was written is counted file by file, which takes a while. So between counts the free space of
the host's disk is checked: a count starts when it has shrunk by much of the room that is left, and
when it has shrunk by all of that, programs are held until they are counted. The free space also
tells what programs keep where it cannot be counted, such as removed files that are mapped but
closed: while there may be such files, what the host has lost without explanation counts.
"""

from __future__ import annotations

import os
import resource
import time

from ...daemon.guest.sessions import send
from . import processes
from .usage import ENTRY, Usage, holders_of_hidden_files

INTERVAL = 1.0
"""Seconds between two counts, and the most between two checks of the free space."""

FULL_INTERVAL = 0.1
"""The same while the disk is full."""

GLANCE = 0.01
"""The least seconds between two checks of the host's free space, which take microseconds."""

SLICE = 0.002
"""Seconds that counting may keep PID 1 from its host."""

FASTEST = 1 << 31
"""Bytes a second that are written at most: with less room, the free space is checked sooner."""

MUCH = 4
"""A count is due when 1/MUCH of the room is gone."""

SHARE = 20
"""Counting takes 1/SHARE of the time at most: many small files are counted less often."""

URGENT_SHARE = 4
"""The same while the disk fills."""

SLACK = 8
"""A full disk may grow by 1/SLACK of its size before a process is killed. As much may vanish from
the host's disk without explanation before it is looked for in the machine."""

PASSES = 3
"""Scans for processes to limit: one may have started with its parent's old limit."""

UNSETTLED = -1
"""Placeholder for the size allowed to a full disk while earlier writes still complete."""

MOST_MISSED = 3
"""After so many failed counts, the disk counts as full until one succeeds."""

MOST_KILLED = 3
"""Processes that are killed one by one before all of them are."""

MIB = 1 << 20

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from .overlays import Overlay


class DiskLimit:
    """Counts what was written, and refuses more than is allowed.

    Args:
        limit: Bytes.
        overlays: Where programs write.
    """

    def __init__(self, limit: int, overlays: list[Overlay]) -> None:
        self._limit = limit
        self._overlays = overlays
        self.notice = processes.Notice()
        """What was last done to programs."""
        self.due = 0.0
        """When `check` wants to be called."""
        self._count_due = self._urgent_due = 0.0
        self._counting: Iterator[None] | None = None
        self._took = 0.0
        """Seconds that the current count has taken."""
        self._upper = Usage()
        """What it has found outside of frozen layers."""
        self._counted = False
        """Whether any count has succeeded."""
        self._written = 0
        self._free = self._spare = 0
        """Free bytes of the host's disk when the last count began, without and with its inodes."""
        self._layers: set[str] = set()
        """The frozen layers that were counted already: they do not change."""
        self._frozen = Usage()
        self._explained = (0, 0)
        """Free bytes of the host's disk, and the bytes counted, when these last agreed."""
        self._hidden = 0
        """Bytes that programs keep where they cannot be counted."""
        self._holders: list[int] = []
        """The processes that may."""
        self._missed = 0
        """Failed counts in a row."""
        self._most = UNSETTLED
        """Bytes to which a full disk may grow before processes are killed."""
        self._killed = 0
        """How often that was done since the disk was full."""
        self._limited: set[int] = set()
        """The processes that may not make files larger, because the disk is full."""
        self._busy: dict[int, int] = {}
        self._hold: processes.Hold | None = None
        """Keeps programs from writing until they are counted."""
        self.touched = False
        """Whether a program was started since the last count, and may have written something."""
        self.full = False
        """Whether the limit is exceeded."""

    @property
    def fullness(self) -> str:
        """The error message if the disk is full, else an empty text."""
        if not self.full:
            return ""
        if self._missed >= MOST_MISSED:
            return "what the machine has written cannot be counted: directories keep moving"
        text = (
            f"the machine has written all that it may: {self._written // MIB} MiB, and "
            f"{self._limit // MIB} are allowed"
        )
        if self._frozen.total * 2 > self._limit:
            text += (
                f"; {self._frozen.total // MIB} of them are frozen in commits, which deleting "
                "files does not free, so continue in a new machine or from an earlier commit"
            )
        if self._hidden * 2 > self._limit:
            text += (
                f"; {self._hidden // MIB} of them are in removed files that processes "
                f"{', '.join(map(str, self._holders[:5]))} still use, so end those"
            )
        return text

    def check(self, now: float) -> None:
        """Check what is due, or continue a count."""
        about = os.statvfs("machine")
        free = about.f_bfree * about.f_frsize
        spare = free + about.f_ffree * ENTRY
        room = max(0, self._limit - self._written)
        shrunk = self._spare - spare
        too_fast = self._counted and shrunk > max(room, self._limit // SLACK)
        if self._counting is None:
            self.due = now + max(GLANCE, min(room / FASTEST, INTERVAL))
            filling = shrunk > room // MUCH
            if now < (self._urgent_due if filling else self._count_due) and not too_fast:
                return
            self._free, self._spare = free, spare
            self._start_count(now)
        if too_fast and self._hold is None and self._counting:
            self._hold = processes.Hold()
        if self._counting:
            self._continue_count(now)

    def put_off(self, now: float) -> None:
        """Check again somewhat later, after an error."""
        self._counting = None
        self.release()
        self.due = now + FULL_INTERVAL

    def expect_loss(self) -> None:
        """Take it as explained what the host's disk has lost until the next count, to a commit."""
        self._explained = (0, 0)

    def release(self) -> None:
        """Let programs run if they were held."""
        if self._hold:
            self._hold.release()
        self._hold = None

    def _start_count(self, now: float) -> None:
        if self.full or self.touched or processes.programs():
            self.touched = False
            self._took = 0.0
            self._counting = self._count()
            self.due = now
        else:
            self._count_due = now + INTERVAL

    def _continue_count(self, now: float) -> None:
        try:
            for _ in self._counting or ():
                if time.monotonic() - now > SLICE:
                    self._took += SLICE
                    return
            self._counting = None
            self._hidden = self._look_for_hidden()
        except OSError:
            self._counting = None
            self._miss_count(now)
            self.release()
            return
        took = self._took + time.monotonic() - now
        self._missed = 0
        self._counted = True
        self._urgent_due = now + took * URGENT_SHARE
        self._count_due = now + max(FULL_INTERVAL if self.full else INTERVAL, took * SHARE)
        self._apply_limit(self._upper.total + self._frozen.total + self._hidden)
        self.release()

    def _count(self) -> Iterator[None]:
        frozen = {path for overlay in self._overlays for path in overlay.frozen}
        if not self._layers <= frozen:  # Some were merged into one.
            self._layers.clear()
            self._frozen = Usage()
        self._upper = Usage()
        yield from self._upper.add_tree("machine/up")
        yield from self._upper.add_removed(self._devices())
        for path in sorted(frozen - self._layers):
            yield from self._frozen.add_tree(path)
            self._layers.add(path)

    def _look_for_hidden(self) -> int:
        """How many bytes programs keep where they cannot be counted, as the host's disk tells."""
        counted = self._upper.blocks + self._frozen.blocks
        free_before, counted_before = self._explained
        lost = (free_before - self._free) - (counted - counted_before)
        self._holders = (
            holders_of_hidden_files(self._devices()) if lost * SLACK > self._limit else []
        )
        if lost < 0 or (lost * SLACK > self._limit and not self._holders):
            self._explained = self._free, counted
        return lost if self._holders else 0

    def _devices(self) -> set[int]:
        return {os.stat("machine/up").st_dev, *(overlay.device for overlay in self._overlays)}

    def _miss_count(self, now: float) -> None:
        """Any program can disturb a count, and must not escape the limit by it."""
        self._layers.clear()
        self._frozen = Usage()
        self._missed += 1
        self._count_due = now + FULL_INTERVAL
        if self._missed >= MOST_MISSED:
            self._apply_limit(self._limit + 1)

    def _apply_limit(self, written: int) -> None:
        """Refuse writes or allow them again, given the number of bytes that are written."""
        grown = written > self._written
        self._written = written
        was_full, self.full = self.full, written > self._limit
        if not self.full:
            if was_full:
                self._allow_writes()
            return
        self._refuse_writes()
        before = self._busy
        self._busy = {pid: processes.kernel_time(pid) for pid in processes.programs()}
        if not was_full:
            self.notice.set(self.fullness)
            # Writes that began before the limit was set complete, and the count is older still. The
            # next count includes all of them.
            self._most = UNSETTLED
            self._killed = 0
            self._urgent_due = self._count_due = time.monotonic() + FULL_INTERVAL
        elif self._most == UNSETTLED:
            self._most = written + self._limit // SLACK
        elif grown and written > self._most:
            self._kill_writers(before)

    def _kill_writers(self, before: dict[int, int]) -> None:
        """Kill what still makes the disk grow: what hides files, else what works most."""
        self.notice.set(f"{self.fullness}, and it still grew: processes that write were killed")
        self._killed += 1
        if self._killed > MOST_KILLED:
            send(processes.EVERY_PROCESS, processes.SIGKILL)
            return
        worked = {pid: ticks - before.get(pid, 0) for pid, ticks in self._busy.items()}
        hiding = [pid for pid in self._holders if worked.get(pid)]
        busiest = max(worked, key=lambda pid: worked[pid], default=0)
        for pid in hiding or ([busiest] if worked.get(busiest) else []):
            send(pid, processes.SIGKILL)

    def _refuse_writes(self) -> None:
        """Limit the files of all processes. Kill those that have lifted this limit and write."""
        mounts = {number for overlay in self._overlays for number in overlay.mounts}
        limited, self._limited = self._limited, set()
        for _ in range(PASSES):
            if not self._refuse_to(set(processes.programs()) - self._limited, limited, mounts):
                return
        hold = processes.Hold()  # They start others faster than these are found.
        self._refuse_to(set(processes.programs()), limited, mounts)
        hold.release()

    def _refuse_to(self, pids: set[int], limited: set[int], mounts: set[int]) -> bool:
        """Limit the files of processes; returns whether there are any."""
        for pid in pids:
            if pid in limited and _file_limit(pid) > 0 and _writes(pid, mounts):
                self.notice.set(f"{self.fullness}: a program that lifted this limit was killed")
                send(pid, processes.SIGKILL)
            _limit_files(pid, 0)
        self._limited |= pids
        return bool(pids)

    def _allow_writes(self) -> None:
        for pid in processes.programs():
            _limit_files(pid, self._limit)
        self._limited.clear()
        self._busy.clear()


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


def _writes(pid: int, mounts: set[int]) -> bool:
    """Whether a process has a file of these mounts open for writing."""
    for view in processes.views(pid):
        try:
            for number in os.listdir(f"{view}/fd"):
                with open(f"{view}/fdinfo/{number}", "rb") as file:
                    about = dict(line.split(b":", 1) for line in file if b":" in line)
                writable = int(about[b"flags"], 8) & os.O_ACCMODE != os.O_RDONLY
                if writable and int(about[b"mnt_id"]) in mounts:
                    return True
        except (OSError, KeyError):  # noqa: PERF203 - each may end, or close the file
            continue
    return False
