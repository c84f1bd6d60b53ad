"""File trees of this machine, the contents of files, and the lines that describe them.

Lines are JSON. Paths and other bytes are text in them: UTF-8, with surrogates for bytes that are
not, whatever the machine's locale is.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

ROOT = os.environb.get(b"MACHINE_ROOT", b"")
"""Set in machines that are just a directory: the real path of their root."""

BLOCK = 256 * 1024
"""Bytes that are read at a time, and the unit in which zeros are left out."""

MAX_LINE = 1024 * 1024
"""Bytes of a line. It holds a path or two of 4 KiB and a short text, escaped."""

ENCODER = json.JSONEncoder(separators=(",", ":"))
"""Made once; `json.dumps` would make it for each line."""

END = ["end"]
"""The last line of a list. Without it, something was cut off."""


class Broken(Exception):
    """The other side has broken the protocol."""


def encoded(text: str) -> bytes:
    """The bytes that a text in a line stands for."""
    return text.encode("utf-8", "surrogateescape")


def decoded(data: bytes) -> str:
    """The text that stands for bytes in a line."""
    return data.decode("utf-8", "surrogateescape")


def key(path: str) -> bytes:
    """The sort key of paths: a directory, then everything in it, then its next sibling."""
    return encoded(path).replace(b"/", b"\0")


def write_line(value: Any) -> None:
    """Write a line."""
    sys.stdout.buffer.write(ENCODER.encode(value).encode() + b"\n")


def read_line() -> Any:
    """Read a line."""
    line = sys.stdin.buffer.readline(MAX_LINE)
    if line[-1:] != b"\n":
        raise Broken("what was sent here was cut off")
    return json.loads(line)


def read_list() -> Iterator[Any]:
    """Read lines up to the one that ends the list."""
    line = read_line()
    while line != END:
        yield line
        line = read_line()


def walk(roots: Iterable[str], skip: Iterable[str], skip_names: Iterable[str]) -> Iterator[Any]:
    """Records of everything at and below some paths, in the order of `key`.

    A record is ``[path, mode, size, mtime, owner, target, seen]``. `size` is the size of a file or
    the number of a device, `target` that of a symlink. `seen` is false for a directory that cannot
    be listed, and for a path of which nothing is known: then all numbers are 0.
    """
    skipped, skipped_names = set(map(encoded, skip)), set(map(encoded, skip_names))
    pending = sorted(map(encoded, roots), key=lambda path: path.replace(b"/", b"\0"), reverse=True)
    while pending:
        path = pending.pop()
        record = read_record(path)
        if record is None:
            continue
        if stat.S_ISDIR(record[1]):
            try:
                names = sorted(os.listdir(ROOT + path), reverse=True)
            except OSError:
                names, record[6] = [], False
            paths = (os.path.join(path, name) for name in names if name not in skipped_names)
            pending += [found for found in paths if found not in skipped]
        yield record


def read_record(path: bytes) -> Any:
    """The record of a path; None if it does not exist, perhaps since a moment ago."""
    try:
        info = os.lstat(ROOT + path)
        target = os.readlink(ROOT + path) if stat.S_ISLNK(info.st_mode) else b""
    except FileNotFoundError:
        return None
    except OSError:  # such as a name that is too long
        return [decoded(path), 0, 0, 0, [0, 0], "", False]
    size = info.st_size if stat.S_ISREG(info.st_mode) else info.st_rdev
    owner = [info.st_uid, info.st_gid]
    return [decoded(path), info.st_mode, size, info.st_mtime_ns, owner, decoded(target), True]


def open_file(path: bytes, directory: int | None = None) -> int:
    """Open a regular file for reading. Never follows a symlink or waits for a FIFO."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC
    descriptor = os.open(path, flags, dir_fd=directory)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file")
    return descriptor


def blocks(file: int, size: int) -> Iterator[tuple[int, bytes]]:
    """The blocks among the first `size` bytes that are not all zeros. Holes take no time."""
    offset = 0
    while offset < size:
        try:
            offset = os.lseek(file, offset, os.SEEK_DATA) // BLOCK * BLOCK
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole is left
                return
            raise
        data = os.pread(file, min(BLOCK, size - offset), offset)
        if data != bytes(len(data)):
            yield offset, data
        offset += BLOCK


def digest(path: bytes) -> str:
    """A digest of the content, whether it has holes or not."""
    file = open_file(path)
    try:
        size = os.fstat(file).st_size  # what is appended from now on does not count
        found = hashlib.blake2b(b"%d" % size, digest_size=32)
        for offset, data in blocks(file, size):
            found.update(b"@%d:" % offset)
            found.update(data)
    finally:
        os.close(file)
    return found.hexdigest()
