"""Copying a layer so that overlayfs takes the copy for the original.

Kept are whiteouts (character devices 0/0), overlayfs' own attributes, hard links, holes, owners,
modes and times. The tree is copied as it lies on the disk, so nothing in it is followed.
"""

from __future__ import annotations

import errno
import os
import stat

CHUNK = 8 * 1024 * 1024
"""Bytes per step of a file's copy; steps only bound memory where the kernel cannot copy alone."""

NO_DATA = (errno.ENXIO,)
CANNOT_SHARE = (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)


def copy(source: str, target: str) -> None:
    """Copy the directory `source` into the existing, empty directory `target`."""
    links: dict[tuple[int, int], str] = {}
    pending = [(source, target)]
    made: list[tuple[str, str]] = []
    while pending:
        here, there = pending.pop()
        made.append((here, there))
        with os.scandir(here) as entries:
            for entry in entries:
                pair = (f"{here}/{entry.name}", f"{there}/{entry.name}")
                if entry.is_dir(follow_symlinks=False):
                    os.mkdir(pair[1], 0o700)
                    pending.append(pair)
                else:
                    _copy_entry(*pair, links)
    for here, there in reversed(
        made
    ):  # Children first: adding an entry changes a directory's time.
        _copy_attributes(here, there, os.lstat(here))


def _copy_entry(source: str, target: str, links: dict[tuple[int, int], str]) -> None:
    info = os.lstat(source)
    if info.st_nlink > 1 and not _is_whiteout(info):
        first = links.setdefault((info.st_dev, info.st_ino), target)
        if first != target:
            os.link(first, target, follow_symlinks=False)
            return
    if stat.S_ISLNK(info.st_mode):
        os.symlink(os.readlink(source), target)
    elif stat.S_ISREG(info.st_mode):
        _copy_content(source, target, info.st_size)
    else:
        os.mknod(target, info.st_mode, info.st_rdev)
    _copy_attributes(source, target, info)


def _is_whiteout(info: os.stat_result) -> bool:
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0


def _copy_attributes(source: str, target: str, info: os.stat_result) -> None:
    if not _is_whiteout(info):
        os.chown(target, info.st_uid, info.st_gid, follow_symlinks=False)
    if stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode):
        for name in os.listxattr(source, follow_symlinks=False):
            value = os.getxattr(source, name, follow_symlinks=False)
            os.setxattr(target, name, value, follow_symlinks=False)
    if not stat.S_ISLNK(info.st_mode) and not _is_whiteout(info):
        os.chmod(target, info.st_mode & 0o7777)
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns), follow_symlinks=False)


def _copy_content(source: str, target: str, size: int) -> None:
    reading = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(writing, size)
        end = 0
        while end < size:
            try:
                start = os.lseek(reading, end, os.SEEK_DATA)
            except OSError as error:
                if error.errno in NO_DATA:
                    break
                raise
            end = os.lseek(reading, start, os.SEEK_HOLE)
            _copy_range(reading, writing, start, end)
    finally:
        os.close(reading)
        os.close(writing)


def _copy_range(reading: int, writing: int, start: int, end: int) -> None:
    os.lseek(reading, start, os.SEEK_SET)
    os.lseek(writing, start, os.SEEK_SET)
    while start < end:
        try:
            done = os.sendfile(writing, reading, start, min(CHUNK, end - start))
        except OSError as error:
            if error.errno not in CANNOT_SHARE:
                raise
            done = os.write(writing, os.pread(reading, min(CHUNK, end - start), start))
        if done == 0:
            break
        start += done
