"""Reading and writing one file, in a separate process: a hanging file system hangs nothing else.

SFTP would do for most files. It cannot say that a disk is full (its errors have no number for
that), it hangs on a FIFO, and takes three round trips where this takes one.
"""

from __future__ import annotations

import errno
import os
import stat

CHUNK = 256 * 1024


def open_to_read(path: bytes, offset: int) -> int:
    """Open a regular file at a byte; a negative one counts from the end."""
    file = _reopen(path, os.O_RDONLY)
    start = offset if offset >= 0 else max(0, os.fstat(file).st_size + offset)
    os.lseek(file, start, os.SEEK_SET)
    return file


def open_to_write(path: bytes, mode: int) -> int:
    """Open a regular file, empty; a new one with its parents and the given mode."""
    try:
        return _reopen(path, os.O_WRONLY | os.O_TRUNC)
    except FileNotFoundError:
        os.umask(0o022)
        os.makedirs(os.path.dirname(path), exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    file = os.open(path, flags, 0o600)
    _check_regular(file)
    os.fchmod(file, mode)
    return file


def send(file: int, length: int) -> None:
    """Copy at most `length` bytes to standard output; all when it is negative."""
    while length:
        chunk = os.read(file, CHUNK if length < 0 else min(CHUNK, length))
        if not chunk:
            break
        _write_all(1, chunk)
        length -= len(chunk) if length > 0 else 0


def receive(file: int) -> int:
    """Copy standard input to a file, close it, and return the number of bytes."""
    size = 0
    while True:
        chunk = os.read(0, CHUNK)
        if not chunk:
            break
        _write_all(file, chunk)
        size += len(chunk)
    os.close(file)  # which is when some file systems notice that they are full
    return size


def _reopen(path: bytes, flags: int) -> int:
    """Open a regular file that exists, without ever opening anything else."""
    probe = os.open(path, os.O_PATH | os.O_CLOEXEC)
    _check_regular(probe)
    return os.open(f"/proc/self/fd/{probe}", flags | os.O_CLOEXEC)


def _check_regular(file: int) -> None:
    if not stat.S_ISREG(os.fstat(file).st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")


def _write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
