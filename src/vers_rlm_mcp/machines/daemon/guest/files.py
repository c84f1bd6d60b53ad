"""Reads or writes one file, in a process of its own: a file system that hangs hangs nobody else.

SFTP would do for most files. It cannot say that a disk is full (its errors have no number for
that), it hangs on a FIFO, and takes three round trips where this takes one.
"""

from __future__ import annotations

import os
import stat

CHUNK = 256 * 1024


def open_to_read(path: bytes, offset: int) -> int:
    """Open a regular file at a byte; a negative one counts from the end."""
    file = _opened(path, os.O_RDONLY, 0)
    start = offset if offset >= 0 else max(0, os.fstat(file).st_size + offset)
    os.lseek(file, start, os.SEEK_SET)
    return file


def open_to_write(path: bytes, mode: int) -> int:
    """Open a regular file, empty; a new one with the directories that it needs."""
    os.umask(0o022)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.umask(0)
    file = _opened(path, os.O_WRONLY | os.O_CREAT, mode)
    os.ftruncate(file, 0)
    return file


def send(file: int, length: int) -> None:
    """Copy at most `length` bytes to standard output; all when it is negative."""
    while length:
        chunk = os.read(file, CHUNK if length < 0 else min(CHUNK, length))
        if not chunk:
            break
        write_all(1, chunk)
        length -= len(chunk) if length > 0 else 0


def receive(file: int) -> int:
    """Copy standard input to a file, and return the number of bytes."""
    size = 0
    while True:
        chunk = os.read(0, CHUNK)
        if not chunk:
            break
        write_all(file, chunk)
        size += len(chunk)
    os.close(file)  # which is when some file systems notice that they are full
    return size


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of the data."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _opened(path: bytes, flags: int, mode: int) -> int:
    """Open a regular file; never waits for the other end of a FIFO."""
    file = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, mode)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        raise OSError(0, "it is not a regular file")
    return file
