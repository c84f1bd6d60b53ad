"""The limit on memory, where no cgroup enforces it: the largest process is killed.

What belongs to one process is counted as its own. Shared memory without a file system (shared
mappings, memory files) is counted as far as programs hold it by a descriptor or have it mapped, and
no further than the host's shared memory has grown. Memory file systems and System V segments have
limits of their own. The kernel's buffers of sockets are not counted.
"""

from __future__ import annotations

import os

from ...daemon.guest.sessions import send
from . import processes

INTERVAL = 0.1
"""Seconds between two checks: some hundred MiB can be filled in that time."""

SLACK = 8
"""Shared memory is looked for once the host's has grown by 1/SLACK of the limit."""

OWN = (b"RssAnon:", b"VmPTE:", b"VmSwap:")
"""In a ``status`` file, the memory of one process, its page tables, and what was swapped out."""

SEGMENT = b"/SYSV"
"""How the names of mapped System V segments begin."""

KIB = 1024
MIB = 1 << 20
BLOCK = 512
"""Bytes of what `st_blocks` counts."""


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
        self._shared_before = -1
        """The host's shared memory when no program of the machine held much of it."""
        file = os.memfd_create("vers-rlm")
        self._device = os.fstat(file).st_dev
        """Where the kernel keeps shared memory that has no file system."""
        os.close(file)

    def check(self, now: float) -> None:
        """Kill the largest processes until the rest fits."""
        self.due = now + INTERVAL
        programs = processes.programs()
        shared = self._shared(programs)
        total = sum(map(_own, programs)) + sum(shared.values())
        if total <= self._limit:
            return
        sizes = {pid: _proportional(pid) for pid in programs}
        held = {pid: sizes[pid] + shared.get(pid, 0) for pid in programs}
        total = sum(held.values())
        while total > self._limit and held:
            largest = max(held, key=lambda pid: held[pid])
            self.notice.set(
                f"the machine's programs held more than its {self._limit // MIB} MiB of memory: "
                f"the largest, process {largest}, was killed"
            )
            send(largest, processes.SIGKILL)
            total -= held.pop(largest)

    def put_off(self, now: float) -> None:
        """Check again somewhat later, after an error."""
        self.due = now + INTERVAL

    def _shared(self, programs: list[int]) -> dict[int, int]:
        """The bytes of shared memory that processes hold, each counted with one of them."""
        now = _shared_on_host()
        if self._shared_before < 0 or now < self._shared_before:
            self._shared_before = now
        grown = now - self._shared_before
        if grown * SLACK <= self._limit:
            return {}
        seen: dict[int, int] = {}
        held: dict[int, int] = {}
        for pid in programs:
            for file, size in _shared_files(pid, self._device).items():
                held[pid] = held.get(pid, 0) + max(0, size - seen.get(file, 0))
                seen[file] = max(size, seen.get(file, 0))
        total = sum(held.values())
        if total * SLACK <= self._limit:
            self._shared_before = now
            return {}
        return {pid: size * min(grown, total) // total for pid, size in held.items()}


def _shared_on_host() -> int:
    with open("/proc/meminfo", "rb") as file:
        line = next((line for line in file if line.startswith(b"Shmem:")), b"Shmem: 0 kB")
    return int(line.split()[1]) * KIB


def _own(pid: int) -> int:
    """Bytes of memory that a process has for itself, or shares with its forks. Quick to read."""
    for view in _views(pid):
        try:
            with open(f"{view}/status", "rb") as file:
                sizes = [int(line.split()[1]) for line in file if line.startswith(OWN)]
        except OSError:
            continue
        if sizes:
            return sum(sizes) * KIB
    return 0


def _proportional(pid: int) -> int:
    """The same, with what forks share divided among them. Slow to read."""
    for view in _views(pid):
        try:
            with open(f"{view}/smaps_rollup", "rb") as file:
                fields = dict(line.split(b":", 1) for line in file if b": " in line)
            return int(fields[b"Pss_Anon"].split()[0]) * KIB
        except (OSError, KeyError):  # noqa: PERF203 - each may end
            continue
    return 0


def _shared_files(pid: int, device: int) -> dict[int, int]:
    """The shared memory that a process holds, in bytes by inode: of a mapping, all of its range."""
    found: dict[int, int] = {}
    for view in processes.views(pid):
        try:
            for name in os.listdir(f"{view}/fd"):
                info = os.stat(f"{view}/fd/{name}")
                if info.st_dev == device:
                    found[info.st_ino] = info.st_blocks * BLOCK
        except OSError:  # noqa: PERF203 - each may end, or close what it has open
            continue
    mapped: dict[int, int] = {}
    mark = b"%02x:%02x" % (os.major(device), os.minor(device))
    for view in _views(pid):
        try:
            with open(f"{view}/maps", "rb") as file:
                lines = [line.split(maxsplit=5) for line in file]
        except OSError:
            continue
        for fields in lines:
            if fields[3] == mark and not fields[-1].startswith(SEGMENT):
                start, end = (int(part, 16) for part in fields[0].split(b"-"))
                inode = int(fields[4])
                mapped[inode] = mapped.get(inode, 0) + end - start
        if lines:
            break
    return {**mapped, **found}


def _views(pid: int) -> list[str]:
    """Directories in /proc of the threads of a process: one that has ended shows no memory."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:  # it has ended
        return []
    return [f"/proc/{pid}/task/{thread}" for thread in threads]
