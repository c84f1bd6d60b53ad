"""What a child of PID 1 does: run a program, read a file or write one.

Each runs as an ordinary process of the machine, with its rights and no others, and tells on the
report descriptor how it went.
"""

from __future__ import annotations

import os
import stat

CHUNK = 1024 * 1024
EINVAL = 22
ENOENT = 2


def execute(argv: list[bytes], environment: dict[bytes, bytes]) -> None:
    """Become the program, looked for in PATH. Returns only by raising OSError."""
    program = argv[0]
    if b"/" in program:
        os.execve(program, argv, environment)  # noqa: S606 - this is the machine's program
    refused: OSError = FileNotFoundError(ENOENT, os.strerror(ENOENT))
    for directory in environment.get(b"PATH", b"").split(b":"):
        try:
            os.execve(directory + b"/" + program, argv, environment)  # noqa: S606 - as above
        except (FileNotFoundError, NotADirectoryError):  # noqa: PERF203 - each may fail
            continue
        except PermissionError as error:
            refused = error
    raise refused


def _reopen(path: bytes, flags: int) -> int:
    """Open a regular file that exists, without ever touching anything else."""
    probe = os.open(path, os.O_PATH)
    if not stat.S_ISREG(os.fstat(probe).st_mode):
        raise OSError(EINVAL, "not a regular file")
    return os.open(f"/proc/self/fd/{probe}", flags)


def open_to_read(path: bytes, offset: int) -> int:
    """Open a regular file at a byte; a negative one counts from the end."""
    descriptor = _reopen(path, os.O_RDONLY)
    size = os.fstat(descriptor).st_size
    os.lseek(descriptor, max(0, size + offset) if offset < 0 else offset, os.SEEK_SET)
    return descriptor


def open_to_write(path: bytes, mode: int) -> int:
    """Open a regular file, empty; a new one with its parents and the given mode."""
    try:
        return _reopen(path, os.O_WRONLY | os.O_TRUNC)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY, 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise OSError(EINVAL, "not a regular file")
    os.fchmod(descriptor, mode)
    return descriptor


def _write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def send(source: int, length: int) -> None:
    """Copy at most `length` bytes of a file to standard output; all when it is negative."""
    while length != 0:
        chunk = os.read(source, CHUNK if length < 0 else min(CHUNK, length))
        if not chunk:
            break
        _write_all(1, chunk)
        length -= len(chunk) if length > 0 else 0


def receive(target: int) -> int:
    """Copy standard input to a file and return the number of bytes."""
    size = 0
    while True:
        chunk = os.read(0, CHUNK)
        if not chunk:
            break
        _write_all(target, chunk)
        size += len(chunk)
    return size
