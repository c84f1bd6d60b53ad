"""How the fake machine uses its host: plain files, and finding and ending processes."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio

from vers_rlm_mcp.errors import MachineFull, PathRefused

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

ROOT_VARIABLE: Final = "MACHINE_ROOT"
"""In the environment of every program of a machine: the real path of its tree."""

KILL_SECONDS: Final = 5.0
"""How long a killed process may take to end. Only one that is stuck in the kernel takes longer."""

KILL_POLL: Final = 0.005
"""Seconds between two looks at whether processes have ended: about what one look costs."""


@contextlib.contextmanager
def translated(path: str) -> Generator[None]:
    """Translate errors about a file into the project's own."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise MachineFull(f"No space left while writing {path!r}; delete something.") from error
        raise PathRefused(f"Cannot use {path!r}: {error.strerror}.") from error


def open_to_read(path: Path, offset: int) -> int:
    """Open a regular file at an offset. A negative one counts from the end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        _require_regular(os.fstat(descriptor))
        size = os.fstat(descriptor).st_size
        os.lseek(descriptor, max(0, size + offset) if offset < 0 else offset, os.SEEK_SET)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


class Replacement:
    """The new content of a regular file, beside it until it is complete. A new one gets a mode."""

    def __init__(self, path: Path, mode: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            info = path.stat()
            _require_regular(info)
            mode = stat.S_IMODE(info.st_mode)
        self._path = Path(os.path.realpath(path))
        self.file, self._temporary = tempfile.mkstemp(dir=self._path.parent)
        os.fchmod(self.file, mode)

    def finish(self) -> None:
        """Take the place of the old content."""
        Path(self._temporary).replace(self._path)

    def discard(self) -> None:
        """Close the file, and remove it if it has not taken its place."""
        os.close(self.file)
        Path(self._temporary).unlink(missing_ok=True)


def write_all(descriptor: int, data: bytes) -> int:
    """Write all of `data`, and return its size."""
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
    return len(data)


def _require_regular(info: os.stat_result) -> None:
    if not stat.S_ISREG(info.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")


def _processes() -> Iterator[tuple[int, Path]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            yield int(entry.name), entry


def in_machine(root: Path) -> Iterator[int]:
    """The live processes that carry a machine's root in their environment, in any session."""
    mark = f"{ROOT_VARIABLE}={root}".encode()
    for pid, entry in _processes():
        with contextlib.suppress(OSError):
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                yield pid


def send_signal(processes: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to those processes that still exist."""
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def freeze(root: Path) -> Sequence[int]:
    """Stop every process of a machine, including those that are forked in the meantime."""
    frozen: list[int] = []
    while found := [pid for pid in in_machine(root) if pid not in frozen]:
        send_signal(found, signal.SIGSTOP)
        frozen += found
    return frozen


async def kill(find: Callable[[], Iterable[int]]) -> None:
    """Kill processes until none is found, even when cancelled."""
    with anyio.move_on_after(KILL_SECONDS, shield=True):
        while found := tuple(find()):
            send_signal(found, signal.SIGKILL)
            await anyio.sleep(KILL_POLL)
