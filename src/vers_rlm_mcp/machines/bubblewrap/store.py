"""Machines, commits and the frozen layers that they share, on disk.

    machines/ID/machine.json  before.json  lock  disk/{up/SLOT/{u,w},copy,merged}
    commits/ID.json
    layers/ID/SLOT/{u,w}
    trash/…                   what is being removed

A record names the layers that it needs; a layer that no record names is garbage. Records are
replaced atomically, and always written before the layers they name are put in place, so that a
crash leaves garbage at most. All changes happen under one file lock, as several servers may share
the directory.

A record that cannot be read is renamed, and its machine or commit does not exist any more, but can
be deleted. Layers that are named in what is left of it are kept until then.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import stat
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vers_rlm_mcp.errors import BackendUnavailable
from vers_rlm_mcp.store import (
    DAMAGED,
    locked,
    locked_without_blocking,
    make_directory,
    open_lock,
    read_file,
)

from .records import (
    MAX_RECORD,
    CommitRecord,
    MachineRecord,
    is_name,
    new_id,
    read_record,
    write_record,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Iterable, Sequence

logger = logging.getLogger(__name__)

LOCKS: Final = ("lock", "trash.lock")
"""Held while the records and layers are changed, and while the trash is emptied."""

RECORD: Final = "machine.json"
BEFORE: Final = "before.json"
"""A machine's record, and a second name of the one before: to go back to that takes no room."""

COMMIT: Final = ".json"
"""The end of the names of commits' records."""

LOCK: Final = "lock"
"""A machine's lock, which names the process that holds it. It is created with the machine, so that
a machine can be locked, and so deleted, when the disk is full."""

COPY: Final = "copy"
MERGED: Final = "merged"
"""What a machine makes on its disk of what it wrote last, and of all its frozen layers."""

MAX_LEVELS: Final = 8
"""Levels of a tree that are removed in place: names of 255 bytes fit into a path of 4096."""

ENDED: Final = "ZX"
"""States of a process of which only its parent has not taken notice yet, in proc(5)."""

FOR_MACHINES: Final = 0o755
"""The mode of directories that machines see, whose users are others on the host."""

LOCK_SECONDS: Final = 10.0
"""How long to wait for others to change the store, which takes them milliseconds."""

TRASH_SECONDS: Final = 60.0
"""How long to wait for others to remove what was discarded."""

LAYER: Final = re.compile(rb"\b[0-9a-f]{12}\b")
"""The name of a layer, in a record."""

MARK: Final = re.compile(rb"(\d{1,9}) \d{1,20}")
"""What `_process_mark` writes."""


class Store:
    """Records and layers under one directory."""

    def __init__(self, root: Path, owner: int | None = None) -> None:
        """`owner` is the host's id for the machines' root user; None when that is our own."""
        self.root = root
        self._owner = owner
        self.layers = root / "layers"
        self._old_bases = root / "bases"
        self._machines = root / "machines"
        self._commits = root / "commits"
        self._trash = root / "trash"

    def open(self) -> None:
        """Make the directories."""
        # Only its owner may enter it: set-user-ID programs lie below.
        with self._translated():
            for directory in (self.root, self.layers, self._machines, self._commits, self._trash):
                make_directory(directory)
            self.layers.chmod(FOR_MACHINES)
            for name in LOCKS:  # Now, since things must be removed when the disk is full.
                os.close(open_lock(self.root / name))

    @contextlib.asynccontextmanager
    async def locked(self) -> AsyncGenerator[None]:
        """Keep others from changing the store. Held for a few file operations only.

        Raises BackendUnavailable: Another process holds it too long, or the store was removed.
        """
        async with contextlib.AsyncExitStack() as stack:
            with self._translated():
                lock = locked_without_blocking(self.root / LOCKS[0], LOCK_SECONDS)
                await stack.enter_async_context(lock)
            yield

    @contextlib.contextmanager
    def _translated(self) -> Generator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise BackendUnavailable(
                f"The directory of machines, {self.root}, was removed while it was in use "
                f"({error.filename} is gone). Start this server again."
            ) from error
        except TimeoutError as error:
            raise BackendUnavailable(f"The machines cannot be reached: {error}.") from error
        except OSError as error:
            raise BackendUnavailable(
                f"The directory of machines, {self.root}, cannot be used: {error}. Make it "
                "writable, or choose another state directory (VERS_RLM_STATE_DIR)."
            ) from error

    # Machines

    def home(self, machine_id: str) -> Path:
        """The directory of a machine."""
        return self._machines / machine_id

    def disk(self, machine_id: str) -> Path:
        """All that a machine can write to."""
        return self.home(machine_id) / "disk"

    def add(self, record: MachineRecord) -> None:
        """Write down a new machine and make its directory. After an error there is none."""
        home = self.home(record.id)
        make_directory(home)
        try:
            _make_layer(home / "disk")
            if self._owner is not None:
                os.chown(home / "disk", self._owner, self._owner)
            os.close(open_lock(home / LOCK))
            self.write(record)
        except OSError:
            self.drop_machine(record.id)
            raise

    def write(self, record: MachineRecord) -> None:
        """Write down what is new of a machine."""
        write_record(self.home(record.id) / RECORD, record)

    def machine(self, machine_id: str) -> MachineRecord | None:
        """The record of a machine; None when there is no such machine."""
        if not is_name(machine_id):
            return None
        return read_record(self.home(machine_id) / RECORD, machine_id, MachineRecord)

    def has_remains(self, machine_id: str) -> bool:
        """Whether there is anything to delete of a machine, with or without a record."""
        return is_name(machine_id) and os.path.lexists(self.home(machine_id))

    def machines(self) -> list[MachineRecord]:
        """Every machine, oldest first."""
        with self._translated():
            homes = list(self._machines.iterdir())
        found = [self.machine(home.name) for home in homes]
        return sorted((item for item in found if item), key=lambda item: item.created_at)

    def put(
        self, record: MachineRecord, slots: Sequence[str], layer: str, merged: str | None
    ) -> MachineRecord:
        """Turn what a stopped machine wrote in these slots into its newest frozen layer.

        `merged` is the new layer that takes the place of all older ones; None when they stay.
        After an error the machine is what it was.
        """
        older = record.layers
        if merged:
            older = (merged,)
            self.adopt_merged(record.id, merged)
        frozen = replace(record, layers=(layer, *older))
        home = self.home(record.id)
        (home / BEFORE).unlink(missing_ok=True)
        (home / BEFORE).hardlink_to(home / RECORD)
        try:
            self.write(frozen)
            _make_layer(self.layers / layer)
            for slot in slots:
                (self.disk(record.id) / "up" / slot).rename(self.layers / layer / slot)
        except OSError:
            self.take_back(frozen, slots)
            raise
        return frozen

    def take_back(self, frozen: MachineRecord, slots: Iterable[str]) -> None:
        """Undo `put` for a machine that could not continue on its frozen layer. Needs no room."""
        layer = self.layers / frozen.layers[0]
        for slot in slots:
            if (layer / slot).is_dir():
                remove_tree(self.disk(frozen.id) / "up" / slot)
                (layer / slot).rename(self.disk(frozen.id) / "up" / slot)
        (self.home(frozen.id) / BEFORE).replace(self.home(frozen.id) / RECORD)

    def adopt(self, machine_id: str, layer: str) -> None:
        """Turn the copy that a machine made of what it wrote into a frozen layer."""
        (self.disk(machine_id) / COPY).rename(self.layers / layer)

    def adopt_merged(self, machine_id: str, layer: str) -> None:
        """Turn what a machine made of all its frozen layers into one."""
        (self.disk(machine_id) / MERGED).rename(self.layers / layer)

    def discard_copies(self, machine_id: str) -> None:
        """Discard copies that were not adopted; `empty_trash` removes their files."""
        for name in (COPY, MERGED):
            self._discard(self.disk(machine_id) / name)

    def take(self, machine_id: str) -> int | None:
        """Take a machine for this process, or see that another has it.

        The descriptor holds the machine as long as it, or a copy of it, is open anywhere. Before
        it is given to another process it must be signed: what holds an unsigned one gets killed.

        Raises FileNotFoundError when there is no such machine any more.
        """
        descriptor = open_lock(self.home(machine_id) / LOCK)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    def sign(self, lock: int) -> None:
        """Write into the lock of a machine that this process has taken it."""
        os.ftruncate(lock, 0)
        os.write(lock, _process_mark(os.getpid()).encode())

    def holder(self, machine_id: str) -> str:
        """The process id of the server that has taken a machine; empty when none has."""
        try:
            descriptor = open_lock(self.home(machine_id) / LOCK)
        except OSError:
            return ""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            mark = MARK.match(self._mark(machine_id))
            return mark[1].decode() if mark else "?"
        finally:
            os.close(descriptor)
        return ""

    def owner(self, machine_id: str) -> int | None:
        """The process id of the server that took a machine last, as long as that lives."""
        mark = MARK.fullmatch(self._mark(machine_id))
        return int(mark[1]) if mark and mark[0].decode() == _process_mark(int(mark[1])) else None

    def _mark(self, machine_id: str) -> bytes:
        try:
            return read_file(self.home(machine_id) / LOCK, MAX_RECORD)
        except ValueError:
            return b""

    def orphans(self, machine_id: str) -> list[int]:
        """The processes of a machine whose server has died, as far as `/proc` shows them.

        A process that is ending may no longer be listed and still hold the machine for a moment.
        """
        place = str(self.home(machine_id) / LOCK)
        return [pid for pid in _processes() if _has_inherited(pid, place)]

    # Commits

    def add_commit(self, record: CommitRecord) -> None:
        """Write down a commit."""
        write_record(self._commits / f"{record.id}{COMMIT}", record)

    def commit(self, commit_id: str) -> CommitRecord | None:
        """The record of a commit; None when there is no such commit."""
        if not is_name(commit_id):
            return None
        return read_record(self._commits / f"{commit_id}{COMMIT}", commit_id, CommitRecord)

    def commits(self) -> list[CommitRecord]:
        """Every commit, oldest first."""
        with self._translated():
            ids = [path.stem for path in self._commits.iterdir() if path.suffix == COMMIT]
        found = [self.commit(commit_id) for commit_id in ids]
        return sorted((item for item in found if item), key=lambda item: item.created_at)

    # Removing

    def drop_machine(self, machine_id: str) -> None:
        """Discard a machine; `empty_trash` removes its files."""
        self._discard(self.home(machine_id))

    def drop_commit(self, commit_id: str) -> None:
        """Discard a commit."""
        if is_name(commit_id):
            for path in (
                self._commits / f"{commit_id}{COMMIT}",
                *self._commits.glob(f"{commit_id}{COMMIT}{DAMAGED}*"),
            ):
                self._discard(path)

    def drop_garbage(self) -> None:
        """Put every layer that no record names into the trash."""
        with self._translated():
            layers = [path for path in self.layers.iterdir() if LAYER.fullmatch(path.name.encode())]
        records = (*self.machines(), *self.commits())
        used = {layer for record in records for layer in record.layers}
        used |= self._layers_of_damaged()
        for path in layers:
            if path.name not in used:
                self._discard(path)

    def _layers_of_damaged(self) -> set[str]:
        """The layers that are named in what is left of records that cannot be read."""
        named: set[str] = set()
        for path in (
            *self._machines.glob(f"*/{RECORD}{DAMAGED}*"),
            *self._commits.glob(f"*{COMMIT}{DAMAGED}*"),
        ):
            with contextlib.suppress(OSError, ValueError):
                named |= {name.decode() for name in LAYER.findall(read_file(path, MAX_RECORD))}
        return named

    def empty_trash(self) -> None:
        """Remove discarded files. May take long, and waits for other processes that do so."""
        # Two at once, of two servers even, would trip over each other.
        with self._translated(), locked(self.root / LOCKS[1], TRASH_SECONDS):
            for path in list(self._trash.iterdir()):
                try:
                    remove_tree(path)
                except OSError as error:
                    logger.warning("%s cannot be removed (%s); remove it yourself.", path, error)

    def drop_old_bases(self) -> bool:
        """Discard the bases that earlier releases kept in the state directory; tell if it did.

        Those releases do not lock the bases that they use. Any process that has a file of the state
        directory open may be such a server, and then the bases stay.
        """
        if not self._old_bases.is_dir() or _others_use(self.root.parent):
            return False
        with self._translated(), locked(self.root / LOCKS[0], LOCK_SECONDS):
            self._discard(self._old_bases)
        return True

    def _discard(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            path.rename(self._trash / new_id())


def remove_tree(path: Path) -> None:
    """Remove a file, or a directory whatever its modes and however deep it is. It may be gone.

    What lies deeper than some levels is moved up beside it first, so that no path and no stack gets
    too long.
    """
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    pending = [path]
    while pending:
        directory = pending.pop()
        _empty(directory, directory.lstat().st_mode, path, pending)
        directory.rmdir()


def _empty(directory: Path, mode: int, top: Path, pending: list[Path], levels: int = 1) -> None:
    if mode & stat.S_IRWXU != stat.S_IRWXU:
        directory.chmod(stat.S_IRWXU)
    for entry in list(os.scandir(directory)):
        below = Path(entry.path)
        if not entry.is_dir(follow_symlinks=False):
            below.unlink()
        elif levels < MAX_LEVELS:
            _empty(below, entry.stat(follow_symlinks=False).st_mode, top, pending, levels + 1)
            below.rmdir()
        else:
            below.chmod(stat.S_IRWXU)  # Only the owner of a writable one may move it.
            pending.append(below.rename(top.with_name(f"{top.name}.{new_id()}")))


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]


def _others_use(directory: Path) -> bool:
    """Whether another process is seen to have something below a directory open."""
    others = [pid for pid in _processes() if pid != os.getpid()]
    return any(path.startswith(f"{directory.resolve()}/") for path in _open_files(others))


def _open_files(pids: Iterable[int]) -> Generator[str]:
    for pid in pids:
        with contextlib.suppress(OSError):  # Another user's, or it has ended.
            for entry in list(Path(f"/proc/{pid}/fd").iterdir()):
                with contextlib.suppress(FileNotFoundError):
                    yield str(entry.readlink())


def _process_mark(pid: int) -> str:
    """A process id and when that process started, as ids are used again. Empty: it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ENDED else f"{pid} {fields[19]}"


def _has_inherited(pid: int, path: str) -> bool:
    """Whether a process was given an open file: servers keep what they open to themselves."""
    process = Path(f"/proc/{pid}")
    try:
        return any(
            str(entry.readlink()) == path
            and not _flags(process / "fdinfo" / entry.name) & os.O_CLOEXEC
            for entry in (process / "fd").iterdir()
        )
    except OSError:  # Another user's, or it has ended.
        return False


def _flags(descriptor: Path) -> int:
    """The flags of a descriptor, which proc(5) gives in octal."""
    lines = descriptor.read_text().splitlines()
    return next(int(line.split()[1], 8) for line in lines if line.startswith("flags:"))


def _make_layer(path: Path) -> None:
    """Make a directory for machines' files, with the same mode whatever the umask is."""
    path.mkdir()
    path.chmod(FOR_MACHINES)
