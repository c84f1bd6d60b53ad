"""How much of the disk a machine takes, counted file by file.

The counting is split into small steps, which PID 1 performs between other things: no program can
stop PID 1, as it could another process. Programs may change everything while it is counted. Trees
are walked by descriptors, since a path could be too long, or lead elsewhere by now.
"""

from __future__ import annotations

import os
import stat

from . import processes

BLOCK = 512
"""Bytes of what `st_blocks` counts."""

ENTRY = 4096
"""Bytes that every file counts as, at least: the host's inodes are limited, too."""

OPEN_LEVELS = 32
"""Directories of a deep tree that are kept open; those above are found again by ``..``."""

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

TRANSFERS = {"x86_64": (b"40", b"275"), "aarch64": (b"71", b"76")}.get(os.uname().machine, ())
"""`sendfile` and `splice`: one that waits keeps a file that was closed since."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


class Moved(OSError):
    """A program has moved a directory that was being counted."""


class Usage:
    """Adds up what files take."""

    def __init__(self) -> None:
        self.total = 0
        """Bytes, of each file at least `ENTRY`."""
        self.blocks = 0
        """Bytes of blocks."""
        self._linked: set[tuple[int, int]] = set()
        """The files with several names that were counted already."""

    def add(self, info: os.stat_result) -> None:
        """Count a file, once."""
        if info.st_nlink != 1 and not stat.S_ISDIR(info.st_mode):
            file = info.st_dev, info.st_ino
            if file in self._linked:
                return
            self._linked.add(file)
        blocks = info.st_blocks * BLOCK
        self.blocks += blocks
        self.total += max(ENTRY, blocks)

    def add_tree(self, directory: str) -> Iterator[None]:
        """Count what lies below a directory. Raises `OSError` when that is disturbed."""
        top = _Directory(os.open(directory, DIRECTORY))
        stack = [top]
        try:
            yield from top.scan(self)
            while stack:
                here = stack[-1]
                if here.below:
                    below = here.enter()
                    if below:
                        stack.append(below)
                        if len(stack) > OPEN_LEVELS:
                            stack[-1 - OPEN_LEVELS].close()
                        yield from below.scan(self)
                    continue
                stack.pop()
                if stack:
                    stack[-1].return_from(here)
                here.close()
        finally:
            for level in stack:
                level.close()

    def add_removed(self, devices: set[int]) -> Iterator[None]:
        """Count the files on these devices that have no name, but are open, run or lived in."""
        for pid in processes.living():
            for view in processes.views(pid):
                for link in _links(view):
                    try:
                        info = os.stat(link)
                    except OSError:  # it was closed, or the process has ended
                        continue
                    if info.st_nlink == 0 and info.st_dev in devices:
                        self.add(info)
            yield


class _Directory:
    """A directory of a tree that is being counted."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        info = os.fstat(descriptor)
        self._identity = info.st_dev, info.st_ino
        self.below: list[str] = []
        """The directories in it that are still to be counted."""

    def scan(self, usage: Usage) -> Iterator[None]:
        """Count its entries, but not what lies below them."""
        with os.scandir(self._descriptor) as entries:
            for entry in entries:
                try:
                    info = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                usage.add(info)
                if stat.S_ISDIR(info.st_mode):
                    self.below.append(entry.name)
                yield

    def enter(self) -> _Directory | None:
        """Open the next directory in it; None when that was removed in the meantime."""
        try:
            return _Directory(os.open(self.below.pop(), DIRECTORY, dir_fd=self._descriptor))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def return_from(self, below: _Directory) -> None:
        """Open it again if it was closed. Raises `Moved` if it is not above any more."""
        if self._descriptor >= 0:
            return
        self._descriptor = os.open("..", DIRECTORY, dir_fd=below._descriptor)
        info = os.fstat(self._descriptor)
        if (info.st_dev, info.st_ino) != self._identity:
            raise Moved

    def close(self) -> None:
        """Close it, if it is open."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


def holders_of_hidden_files(devices: set[int]) -> list[int]:
    """The processes that may keep removed files which no descriptor shows.

    Such are files that are mapped but closed, in transit through a socket, or being sent.
    """
    marks = tuple(b" %02x:%02x " % (os.major(device), os.minor(device)) for device in devices)
    found: list[int] = []
    for pid in processes.living():
        views = processes.views(pid)
        if _maps_removed(pid, marks) or any(map(_has_in_transit, views)) or _is_sending(pid):
            found.append(pid)
    return found


def _maps_removed(pid: int, marks: tuple[bytes, ...]) -> bool:
    for thread in _threads(pid):
        try:
            with open(f"{thread}/maps", "rb") as file:
                lines = file.readlines()
        except OSError:
            continue
        if lines:  # All threads have the same, but one that has ended shows nothing.
            removed = [line for line in lines if line.endswith(b" (deleted)\n")]
            return any(mark in line for line in removed for mark in marks)
    return False


def _has_in_transit(view: str) -> bool:
    for link in _links(view):
        try:
            if not stat.S_ISSOCK(os.stat(link).st_mode):
                continue
            with open(f"{view}/fdinfo/{os.path.basename(link)}", "rb") as file:
                count = next((line for line in file if line.startswith(b"scm_fds:")), b":0")
        except OSError:
            continue
        if int(count.split(b":")[1]):
            return True
    return False


def _is_sending(pid: int) -> bool:
    for thread in _threads(pid):
        try:
            with open(f"{thread}/syscall", "rb") as file:
                if file.read(16).split(b" ")[0] in TRANSFERS:
                    return True
        except OSError:  # noqa: PERF203 - each may end
            continue
    return False


def _links(view: str) -> list[str]:
    """The links to what a process has open, runs and works in."""
    try:
        numbers = os.listdir(f"{view}/fd")
    except OSError:  # it has ended
        return []
    return [f"{view}/exe", f"{view}/cwd", *(f"{view}/fd/{number}" for number in numbers)]


def _threads(pid: int) -> list[str]:
    try:
        return [f"/proc/{pid}/task/{name}" for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:  # it has ended
        return []
