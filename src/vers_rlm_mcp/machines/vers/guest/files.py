"""Reads or writes one file. Runs in the machine, on its own Python: the standard library only.

    python3 -I -S -c THIS read PATH OFFSET LENGTH     content on the output; LENGTH -1: to the end
    python3 -I -S -c THIS write PATH MODE             content on the input; its size at the end

The first line of the output is the number of this process, or "!" with an error's number and why
the file cannot be used. When writing, a last line is the size or, again, "!" and an error.

SFTP would do for most files. It cannot say that a disk is full (its errors have no number for
that), it hangs on a FIFO, and takes three round trips where this takes one.
"""

from __future__ import annotations

import os
import stat
import sys

CHUNK = 256 * 1024


def opened(path: bytes, flags: int, mode: int) -> int:
    """Open a regular file; never waits for the other end of a FIFO."""
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, mode)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise OSError(0, "it is not a regular file")
    return descriptor


def read(path: bytes, offset: int, length: int) -> None:
    """Send a slice of a file; a negative offset counts from its end."""
    file = opened(path, os.O_RDONLY, 0)
    start = offset if offset >= 0 else max(0, os.fstat(file).st_size + offset)
    os.lseek(file, start, os.SEEK_SET)
    report(os.getpid())
    while length:
        chunk = os.read(file, CHUNK if length < 0 else min(CHUNK, length))
        if not chunk:
            break
        send(1, chunk)
        length -= len(chunk) if length > 0 else 0


def write(path: bytes, mode: int) -> None:
    """Replace a file's content, or make it, with the directories that it needs."""
    os.umask(0o022)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.umask(0)
    file = opened(path, os.O_WRONLY | os.O_CREAT, mode)
    os.ftruncate(file, 0)
    report(os.getpid())
    size = 0
    while True:
        chunk = os.read(0, CHUNK)
        if not chunk:
            break
        send(file, chunk)
        size += len(chunk)
    os.close(file)
    report(size)


def send(descriptor: int, data: bytes) -> None:
    """Write all of the data."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def report(line: object) -> None:
    """Say something that is no content."""
    send(1, f"{line}\n".encode())


def main(operation: str, path: str, *numbers: str) -> None:
    """Carry out an operation, and report why it cannot be done."""
    # Given as text, which need not be UTF-8.
    name = os.fsencode(path)
    try:
        if operation == "read":
            read(name, *map(int, numbers))
        else:
            write(name, *map(int, numbers))
    except BrokenPipeError:
        pass  # nobody wants the rest
    except OSError as error:
        report(f"!{error.errno or 0} {error.strerror}")


main(*sys.argv[1:])
