"""Directories that machines start from, made once and shared by all state directories of a user.

    KIND-KEY-CONTENT/   digests of what the directory is for, and of what it is made from
    lock                held while a directory is made or removed
    .ID/                being made or removed

Each can be made again, and no machine or commit refers to one by name: records name the host or an
archive. A directory is therefore in use only while a process uses it, and each process holds a
shared lock on what it uses, which the kernel releases whatever way the process ends. A directory of
which the key has newer content is removed by a sweep once nothing uses it; any other is kept, as an
archive that is not there may lie on a disk that is not mounted.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vers_rlm_mcp.store import lock_within, locked

from .records import new_id
from .store import remove_tree

if TYPE_CHECKING:
    from collections.abc import Callable

LOCK: Final = "lock"

MACHINE_ID: Final = Path("/etc/machine-id")
"""Tells apart the computers that share a home directory, where locks do not reach the others."""

MAKE_SECONDS: Final = 120.0
"""How long to wait for another process that makes a directory, which takes it some seconds."""

UNUSABLE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
"""Errors of a place in which nothing can be made."""

DIGEST: Final = 16
"""Hexadecimal digits of a digest in a name."""


class Cache:
    """Makes directories and keeps those in use until it is closed."""

    def __init__(self, root: Path, fallback: Path | None = None) -> None:
        self.root = root
        self._fallback = fallback
        """Takes over if `root` turns out to be full, or not to be writable."""
        self._held: dict[Path, int] = {}

    @classmethod
    def of_user(cls, fallback: Path) -> Cache:
        """The cache in the user's data directory or, where that is not writable, at `fallback`.

        Not in the XDG cache directory, which cleaners empty while machines run.
        """
        with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: there is no home.
            root = _data_directory() / "vers-rlm-mcp" / "bases"
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            if root.stat().st_uid == os.geteuid() and os.access(root, os.W_OK | os.X_OK):
                return cls(root, fallback)
        return cls(fallback)

    def provide(
        self, kind: str, key: object, content: object, make: Callable[[Path], object]
    ) -> Path:
        """A directory that is there until `close`, made by `make` if need be.

        Where there is no room for it, the fallback is used from then on. May wait for others that
        make one. Raises OSError, and what `make` raises.

        Args:
            kind: The first part of its name.
            key: What it is for. Has a `repr` that says all.
            content: What it is made from, likewise.
            make: Fills an empty directory.
        """
        host = MACHINE_ID.read_text() if MACHINE_ID.exists() else ""
        name = f"{kind}-{_digest((host, key))}-{_digest(content)}"
        try:
            return self._provide(self.root / name, make)
        except OSError as error:
            if not (_means_no_room(error) and self._fallback):
                raise
            self.root, self._fallback = self._fallback, None
            return self._provide(self.root / name, make)

    def _provide(self, place: Path, make: Callable[[Path], object]) -> Path:
        while not self._hold(place):
            self._make(place, make)
        return place

    def sweep(self) -> list[str]:
        """Remove what nothing uses and newer content has replaced; returns the names.

        Nothing is removed while another process makes a directory.
        """
        if not self.root.is_dir():
            return []
        with contextlib.suppress(TimeoutError), self._locked(0):
            self._remove_remains()
            newest: dict[str, Path] = {}
            places = [path for path in self.root.iterdir() if path.is_dir()]
            for place in sorted(places, key=lambda path: path.stat().st_mtime_ns):
                newest[place.name.rpartition("-")[0]] = place
            replaced = [place for place in places if place not in newest.values()]
            removed = [place.name for place in replaced if self._retire(place)]
            self._remove_remains()
            return removed
        return []

    def close(self) -> None:
        """Release what was provided."""
        while self._held:
            os.close(self._held.popitem()[1])

    def _hold(self, place: Path) -> bool:
        """Lock a directory against removal; False when there is none."""
        if place in self._held:
            return True
        try:
            descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            lock_within(descriptor, fcntl.LOCK_SH, MAKE_SECONDS, place)
        except TimeoutError:
            os.close(descriptor)
            raise
        if not _is_at(descriptor, place):  # It was removed before we had the lock.
            os.close(descriptor)
            return False
        now = time.time_ns()
        os.utime(descriptor, ns=(now, now))  # The newest of a key is the one used last.
        self._held[place] = descriptor
        return True

    def _make(self, place: Path, make: Callable[[Path], object]) -> None:
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.root.chmod(0o700)  # Set-user-ID programs lie below.
        with self._locked(MAKE_SECONDS):
            self._remove_remains()
            if place.is_dir():  # Another process has made it in the meantime.
                return
            making = self.root / f".{new_id()}"
            making.mkdir()
            try:
                make(making)
                making.rename(place)
            finally:
                remove_tree(making)

    def _retire(self, place: Path) -> bool:
        """Take a directory out of use, unless a process uses it."""
        descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            place.rename(self.root / f".{new_id()}")
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)
        return True

    def _remove_remains(self) -> None:
        """Remove what has been retired, and what a killed process was making."""
        for path in list(self.root.glob(".*")):
            remove_tree(path)

    def _locked(self, seconds: float) -> contextlib.AbstractContextManager[None]:
        return locked(self.root / LOCK, seconds)


def _means_no_room(error: OSError) -> bool:
    # An error of copying many files only has the texts of theirs.
    texts = str(error) if isinstance(error, shutil.Error) else ""
    return error.errno in UNUSABLE or any(os.strerror(number) in texts for number in UNUSABLE)


def _data_directory() -> Path:
    given = Path(os.environ.get("XDG_DATA_HOME", ""))
    return given if given.is_absolute() else Path.home() / ".local" / "share"


def _digest(about: object) -> str:
    return hashlib.sha256(repr(about).encode()).hexdigest()[:DIGEST]


def _is_at(descriptor: int, place: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), place.stat())
    except FileNotFoundError:
        return False
