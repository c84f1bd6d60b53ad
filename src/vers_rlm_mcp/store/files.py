"""Private files and directories: made with modes of their own, replaced whole, and set aside.

A file is 0600 and a directory 0700 whatever the umask is, since both may hold what only their owner
may see.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

logger = logging.getLogger(__name__)

LOCK_POLL_SECONDS: Final = 0.002
"""Between two attempts to lock a file."""

FILE_MODE: Final = 0o600
DIRECTORY_MODE: Final = 0o700

STATE: Final = ("bubblewrap", "microsandbox", "owners", "runs", "salt")
"""What the state directory holds, besides the ledger."""

DAMAGED: Final = ".damaged"
"""Part of the names of what was set aside."""


def make_directory(path: Path) -> None:
    """Make a private directory with its parents, unless it is there. Set aside what is none.

    Raises OSError.
    """
    if not path.parent.exists():
        make_directory(path.parent)
    if not path.is_dir() and os.path.lexists(path):
        set_aside(path, "it is not a directory")
    with suppress(FileExistsError):
        path.mkdir()
    if stat.S_IMODE(path.stat().st_mode) != DIRECTORY_MODE:
        path.chmod(DIRECTORY_MODE)


def make_state_directory(path: Path) -> None:
    """Make the state directory, or close one that holds nothing of others to them.

    Raises OSError: It cannot be made, or something else is in its place, which is left there.
    """
    if os.path.lexists(path) and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    if not path.exists():
        make_directory(path)
    about = path.stat()
    mode = stat.S_IMODE(about.st_mode)
    if mode & stat.S_ISVTX or about.st_uid != os.geteuid() or not mode & ~DIRECTORY_MODE:
        return
    if all(_is_of_state(entry.name) for entry in path.iterdir()):
        path.chmod(DIRECTORY_MODE)


def _is_of_state(name: str) -> bool:
    return name.startswith("ledger.") or name in STATE


def open_private(path: str | Path, flags: int) -> int:
    """Open a file that is created as a private one if it is missing, for `open` as an opener."""
    descriptor = os.open(path, flags | os.O_CLOEXEC, FILE_MODE)
    try:
        if flags & os.O_CREAT and stat.S_IMODE(os.fstat(descriptor).st_mode) != FILE_MODE:
            with suppress(PermissionError):  # it is another user's
                os.fchmod(descriptor, FILE_MODE)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def locked(path: Path, seconds: float) -> Generator[None]:
    """Lock a file, which is made if it is missing, for this process alone. May block.

    Raises:
        TimeoutError: Others held it locked for so many seconds.
        OSError: It cannot be opened.
    """
    descriptor = open_lock(path)
    try:
        lock_within(descriptor, fcntl.LOCK_EX, seconds, path)
        yield
    finally:
        os.close(descriptor)


def open_lock(path: Path) -> int:
    """Open a lock file, which is made if it is missing. Raises FileNotFoundError: nor can it be."""
    flags = os.O_RDWR | os.O_CREAT
    try:
        return open_private(path, flags)
    except IsADirectoryError as error:
        set_aside(path, error)
        return open_private(path, flags)


def lock_within(descriptor: int, kind: int, seconds: float, path: Path) -> None:
    """Lock an open file. Raises TimeoutError if others hold it locked for so many seconds."""
    deadline = time.monotonic() + seconds
    while not try_lock(descriptor, kind):
        if time.monotonic() > deadline:
            raise lock_timeout(path, seconds)
        time.sleep(LOCK_POLL_SECONDS)


def try_lock(descriptor: int, kind: int) -> bool:
    """Lock an open file until it is closed, without waiting; False if others hold it locked."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock_timeout(path: Path, seconds: float) -> TimeoutError:
    """The error for a file that others held locked for so long."""
    return TimeoutError(
        f"another process has held {path} locked for {seconds:g} s: try again, or end that process"
    )


def replace_file(path: Path, data: bytes) -> None:
    """Write a file so that readers, and a crash, leave the old one or the new one, whole.

    Raises OSError; the old one is there then.
    """
    making = path.with_name(f".{path.name}.{os.urandom(6).hex()}")
    try:
        with open(making, "xb", opener=open_private) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        making.replace(path)
    except OSError:
        with suppress(OSError):
            making.unlink()
        raise


def read_file(path: Path, most: int) -> bytes:
    """The bytes of a regular file.

    Raises:
        FileNotFoundError: There is none; NotADirectoryError: nor can there be one.
        OSError: It cannot be read.
        ValueError: It is no regular file, or has more than `most` bytes.
    """
    # Opening a FIFO would wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - it is a descriptor
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise ValueError("it is not a regular file")
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return data


def set_aside(path: Path, why: object, advice: str = "Delete it if you do not need it") -> None:
    """Rename what cannot be used, so that it stands in the way of nothing, and log that once.

    Raises OSError.
    """
    place = path.with_name(f"{path.name}{DAMAGED}-{time.time_ns()}")
    path.rename(place)
    logger.warning("%s cannot be used (%s) and was set aside as %s. %s.", path, why, place, advice)
