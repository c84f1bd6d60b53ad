"""Copies layers into one that overlayfs treats like the original.

Whiteouts (character devices 0/0), overlayfs' own attributes, hard links, holes, owners, modes and
times are kept. Several layers, newest first, become one with the same effect. The trees are walked
by descriptors, so that no symlink is followed and no path gets too long.
"""

from __future__ import annotations

import errno
import os
import resource
import stat

CHUNK = 8 * 1024 * 1024
"""Bytes per step of a file's copy."""

OPAQUE = "user.overlay.opaque"
"""Marks a directory that hides what the layers below have in its place."""

OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


def copy(sources: list[str], target: str) -> None:
    """Copy the directories `sources`, newest first, into the existing, empty one `target`."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # Some for each level of depth.
    links: dict[tuple[int, int], str] = {}
    opened = [os.open(source, OPEN | os.O_DIRECTORY) for source in sources]
    stack = [_Directory(opened, os.open(target, OPEN | os.O_DIRECTORY), target)]
    while stack:
        below = stack[-1].step(links)
        if below is not None:
            stack.append(below)
        elif stack[-1].finished:
            stack.pop().close()


class _Directory:
    """A directory that is being copied from one or more layers."""

    def __init__(self, sources: list[int], target: int, path: str) -> None:
        self._sources = sources
        self._target = target
        self._path = path
        self._names: dict[str, int] = {}
        """What is left to copy, and the newest layer that has it."""
        for index, source in enumerate(sources):
            for name in os.listdir(source):
                self._names.setdefault(name, index)

    @property
    def finished(self) -> bool:
        """Whether everything in it has been copied."""
        return not self._names

    def step(self, links: dict[tuple[int, int], str]) -> _Directory | None:
        """Copy the next entry; one that is a directory is returned, to be copied next."""
        if not self._names:
            return None
        name, index = self._names.popitem()
        info = os.lstat(name, dir_fd=self._sources[index])
        if stat.S_ISDIR(info.st_mode):
            return self._enter(name, index)
        if not _link_to_copy(info, f"{self._path}/{name}", self._target, name, links):
            _copy_entry(self._sources[index], self._target, name, info)
        return None

    def close(self) -> None:
        """Give the copy its attributes, which adding entries has changed, and close everything."""
        _copy_attributes(self._sources[0], self._target)
        if any(map(_is_opaque, self._sources)):
            os.setxattr(self._target, OPAQUE, b"y")
        for descriptor in (*self._sources, self._target):
            os.close(descriptor)

    def _enter(self, name: str, index: int) -> _Directory:
        sources: list[int] = []
        for source in self._sources[index:]:
            try:
                sources.append(os.open(name, OPEN | os.O_DIRECTORY, dir_fd=source))
            except FileNotFoundError:
                continue
            except NotADirectoryError:  # This hides everything older.
                break
            if _is_opaque(sources[-1]):
                break
        os.mkdir(name, 0o700, dir_fd=self._target)
        target = os.open(name, OPEN | os.O_DIRECTORY, dir_fd=self._target)
        return _Directory(sources, target, f"{self._path}/{name}")


def _is_opaque(directory: int) -> bool:
    return OPAQUE in os.listxattr(directory) and os.getxattr(directory, OPAQUE) == b"y"


def _link_to_copy(
    info: os.stat_result,
    path: str,
    target: int,
    name: str,
    links: dict[tuple[int, int], str],
) -> bool:
    """Link an entry to the copy of the same file, if there is one; returns whether there is."""
    if info.st_nlink == 1 or _is_whiteout(info):
        return False
    first = links.setdefault((info.st_dev, info.st_ino), path)
    if first != path:
        directory, _, original = first.rpartition("/")
        above = _open_long_path(directory)
        os.link(original, name, src_dir_fd=above, dst_dir_fd=target, follow_symlinks=False)
        os.close(above)
    return first != path


def _open_long_path(path: str) -> int:
    """Open a directory part by part: the path may be longer than the kernel accepts."""
    found = os.open(".", OPEN | os.O_DIRECTORY)
    for name in path.split("/"):
        above, found = found, os.open(name, OPEN | os.O_DIRECTORY, dir_fd=found)
        os.close(above)
    return found


def _is_whiteout(info: os.stat_result) -> bool:
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0


def _copy_entry(source: int, target: int, name: str, info: os.stat_result) -> None:
    """Copy what is not a directory."""
    if stat.S_ISREG(info.st_mode):
        reading = os.open(name, OPEN, dir_fd=source)
        writing = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=target)
        try:
            _copy_content(reading, writing, info.st_size)
            _copy_attributes(reading, writing)
        finally:
            os.close(reading)
            os.close(writing)
        return
    if stat.S_ISLNK(info.st_mode):
        os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
    else:
        os.mknod(name, info.st_mode, info.st_rdev, dir_fd=target)
    if _is_whiteout(info):
        return
    os.chown(name, info.st_uid, info.st_gid, dir_fd=target, follow_symlinks=False)
    if not stat.S_ISLNK(info.st_mode):
        os.chmod(name, info.st_mode & 0o7777, dir_fd=target)
    times = (info.st_atime_ns, info.st_mtime_ns)
    os.utime(name, ns=times, dir_fd=target, follow_symlinks=False)


def _copy_attributes(source: int, target: int) -> None:
    """Owner, attributes, mode and times of an open file or directory."""
    info = os.fstat(source)
    os.chown(target, info.st_uid, info.st_gid)
    for name in os.listxattr(source):
        os.setxattr(target, name, os.getxattr(source, name))
    os.chmod(target, info.st_mode & 0o7777)
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))


def _copy_content(reading: int, writing: int, size: int) -> None:
    """Copy a file's content, leaving its holes out."""
    os.ftruncate(writing, size)
    end = 0
    while end < size:
        try:
            start = os.lseek(reading, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # Nothing but a hole follows.
                return
            raise
        end = os.lseek(reading, start, os.SEEK_HOLE)
        os.lseek(writing, start, os.SEEK_SET)
        while start < end:
            done = os.sendfile(writing, reading, start, min(CHUNK, end - start))
            if done == 0:
                return
            start += done
