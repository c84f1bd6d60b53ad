"""Brings files of one machine into another.

    digest  describes what is at and below the given paths
    pack    sends the content of the given files
    unpack  takes a plan and contents, and carries the plan out when it is confirmed

An item is ``[path, kind, mode, detail]``. Its kind is file, directory, symlink or other; the detail
a digest of a file's content, or a symlink's target.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
from contextlib import contextmanager, suppress

from .tree import (
    BLOCK,
    END,
    ROOT,
    Broken,
    blocks,
    decoded,
    digest,
    encoded,
    open_file,
    read_line,
    read_list,
    walk,
    write_line,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

TEMPORARY = ".vers-rlm-{}-{}"
"""The name of a staged file: the token of the transfer and a number."""


def perform(command: str, options: dict[str, Any]) -> None:
    """Digest, pack or unpack. An error of the system is reported with its number."""
    try:
        if command == "digest":
            write_items()
        elif command == "pack":
            pack()
        else:
            unpack(options["token"])
    except BrokenPipeError:
        raise
    except OSError as error:
        where = "" if error.filename is None else f": {error.filename!r}"
        write_line(["error", error.errno or 0, f"{error.strerror}{where}"])


def write_items() -> None:
    """The item of each record."""
    for record in walk(list(read_list()), (), ()):
        if not record[6]:
            os.listdir(ROOT + encoded(record[0]))  # which raises why not
            raise Broken(f"{record[0]} changes all the time")
        write_line(item(record))
    write_line(END)


def item(record: Any) -> Any:
    """The item of a record."""
    path, mode, _, _, _, target, _ = record
    bits = stat.S_IMODE(mode)
    if stat.S_ISREG(mode):
        return [path, "file", bits, digest(ROOT + encoded(path))]
    if stat.S_ISDIR(mode):
        return [path, "directory", bits, ""]
    if stat.S_ISLNK(mode):
        return [path, "symlink", 0, target]
    return [path, "other", 0, str(mode)]


def pack() -> None:
    """Write the size of each file, then its blocks, each with its offset and its bytes."""
    for path in list(read_list()):
        file = open_file(ROOT + encoded(path))
        size = os.fstat(file).st_size
        write_line(["file", size])
        for offset, data in blocks(file, size):
            write_line(["block", offset, len(data)])
            sys.stdout.buffer.write(data)
        write_line(END)
        os.close(file)
    write_line(["whole"])


def unpack(token: str) -> None:
    """Write all contents under other names; once that is confirmed, rename them."""
    transfer = Transfer(token, list(read_list()))
    try:
        transfer.stage()
        write_line(["staged"])
        sys.stdout.flush()
        if read_line() != ["commit", token]:
            raise Broken("the transfer was not confirmed")
        transfer.commit()
    finally:
        transfer.discard()
    write_line(["done"])


class Transfer:
    """The plan, as lines of three kinds.

    ``["top", path]``: the paths after it are at or below this one, and no symlink below the
    directory that this one is in is followed. ``["drop", path]``. ``["put", *item]``.
    """

    def __init__(self, token: str, plan: list[Any]) -> None:
        self._token = token
        self._drops: list[Place] = []
        self._puts: list[tuple[Place, Any]] = []
        self._staged: list[tuple[Place, Place]] = []
        above = b"/"
        for form, path, *facts in plan:
            if form == "top":
                above = nearest_directory(os.path.dirname(encoded(path)))
            elif form == "drop":
                self._drops.append(Place(above, encoded(path)))
            else:
                self._puts.append((Place(above, encoded(path)), facts))

    def stage(self) -> None:
        """Make files and links beside their destinations, so that a rename moves them there."""
        for place, (kind, mode, detail) in self._puts:
            if kind == "directory":
                continue
            name = encoded(TEMPORARY.format(self._token, len(self._staged)))
            temporary = place.beside(name)
            self._staged.append((temporary, place))
            with temporary.directory() as directory:
                if kind == "symlink":
                    os.symlink(encoded(detail), name, dir_fd=directory)
                else:
                    receive(name, directory, mode, detail)
        if read_line() != ["whole"]:
            raise Broken("more was sent than was asked for")

    def commit(self) -> None:
        """Remove, make directories, rename, and finally set the modes of directories."""
        for place in self._drops[::-1]:
            with suppress(FileNotFoundError), place.directory() as directory:
                remove(place.name, directory)
        directories = [(place, facts[1]) for place, facts in self._puts if facts[0] == "directory"]
        for place, _ in directories:
            with suppress(FileExistsError), place.directory(make=True) as directory:
                os.mkdir(place.name, 0o700, dir_fd=directory)
        while self._staged:
            temporary, place = self._staged[-1]
            with temporary.directory() as old, place.directory(make=True) as new:
                os.rename(temporary.name, place.name, src_dir_fd=old, dst_dir_fd=new)
            self._staged.pop()
        for place, mode in directories[::-1]:
            with Place(place.above, place.path + b"/.").directory() as directory:
                os.fchmod(directory, mode)

    def discard(self) -> None:
        """Remove what was staged and not renamed."""
        for temporary, _ in self._staged:
            with suppress(OSError), temporary.directory() as directory:
                os.unlink(temporary.name, dir_fd=directory)


class Place:
    """A path in this machine, reached without following a link below a certain directory."""

    def __init__(self, above: bytes, path: bytes) -> None:
        self.above = above
        self.path = path
        self._parts = path[len(above) :].strip(b"/").split(b"/")

    @property
    def name(self) -> bytes:
        """The last part of the path."""
        return self._parts[-1]

    def beside(self, name: bytes) -> Place:
        """This name in the directory of this path, or in the nearest one above that exists."""
        path = self.above
        for part in self._parts[:-1]:
            following = os.path.join(path, part)
            if os.path.islink(ROOT + following) or not os.path.isdir(ROOT + following):
                break
            path = following
        return Place(self.above, os.path.join(path, name))

    @contextmanager
    def directory(self, *, make: bool = False) -> Generator[int, None, None]:
        """A descriptor of the directory that the path is in."""
        descriptor = self._open(make)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _open(self, make: bool) -> int:
        descriptor = os.open(ROOT + self.above, DIRECTORY)
        for part in self._parts[:-1]:
            try:
                if make:
                    with suppress(FileExistsError):
                        os.mkdir(part, 0o755, dir_fd=descriptor)
                following = os.open(part, DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
            except OSError as error:
                raise OSError(error.errno, error.strerror, decoded(self.path)) from None
            finally:
                os.close(descriptor)
            descriptor = following
        return descriptor


def nearest_directory(path: bytes) -> bytes:
    """The path, or the nearest directory above it that exists."""
    while not os.path.isdir(ROOT + path):
        path = os.path.dirname(path)
    return path


def remove(name: bytes, directory: int) -> None:
    """Remove a file, or an empty directory."""
    if stat.S_ISDIR(os.lstat(name, dir_fd=directory).st_mode):
        os.rmdir(name, dir_fd=directory)
    else:
        os.unlink(name, dir_fd=directory)


def receive(name: bytes, directory: int, mode: int, wanted: str) -> None:
    """Write a file from what is received. Its digest must be the planned one."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(name, flags, 0o600, dir_fd=directory), "wb", buffering=0) as file:
        form, size = read_line()
        found = hashlib.blake2b(b"%d" % size, digest_size=32)
        os.ftruncate(file.fileno(), size)
        for _, offset, length in read_list():
            data = sys.stdin.buffer.read(length) if 0 <= length <= BLOCK else b""
            if form != "file" or len(data) != length:
                raise Broken("a file was cut off")
            found.update(b"@%d:" % offset)
            found.update(data)
            if os.pwrite(file.fileno(), data, offset) != length:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fchmod(file.fileno(), mode)
    if found.hexdigest() != wanted:
        raise Broken("a file was changed while it was carried; try again when nothing writes it")
