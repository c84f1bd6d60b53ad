"""Machines, commits and the frozen layers that they share, on disk.

    machines/ID/machine.json  before.json  lock  disk/{up/SLOT/{u,w},copy,merged}
    commits/ID.json
    layers/ID/SLOT/{u,w}
    trash/…                   what is being removed

A record names the layers that it needs; a layer that no record names is garbage. Records are
replaced atomically, and always written before the layers they name are put in place, so that a
crash leaves garbage at most. All changes happen under one file lock, as several servers may share
the directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..base import Commit, MachineInfo, MachineSpec

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping, Sequence

BACKEND: Final = "bubblewrap"
MACHINE_PREFIX: Final = "bw-"
COMMIT_PREFIX: Final = "bwc-"

ID_BYTES: Final = 6
"""Random bytes of an id: 48 bits cannot be guessed over any interface, and can still be typed."""


LOCKS: Final = ("lock", "trash.lock")
"""Held while the records and layers are changed, and while the trash is emptied."""

RECORD: Final = "machine.json"
BEFORE: Final = "before.json"
"""A machine's record, and a second name of the one before: to go back to that takes no room."""

LOCK: Final = "lock"
"""A machine's lock, which names the process that holds it. It is created with the machine, so that
a machine can be locked, and so deleted, when the disk is full."""

COPY: Final = "copy"
MERGED: Final = "merged"
"""What a machine makes on its disk of what it wrote last, and of all its frozen layers."""

ENDED: Final = "ZX"
"""States of a process of which only its parent has not taken notice yet, in proc(5)."""

MAX_ID: Final = 64
"""Characters of an id that are looked up at all."""


@dataclass(frozen=True, slots=True)
class MachineRecord:
    """The record of a machine."""

    id: str
    created_at: float
    parent: str | None
    labels: Mapping[str, str]
    spec: MachineSpec
    base: str
    layers: tuple[str, ...] = ()
    """The frozen layers below what the machine writes now, newest first."""

    def info(self, *, running: bool) -> MachineInfo:
        """The same, as the interface has it."""
        return MachineInfo(
            id=self.id,
            backend=BACKEND,
            created_at=self.created_at,
            parent=self.parent,
            labels=dict(self.labels),
            spec=self.spec,
            running=running,
        )


@dataclass(frozen=True, slots=True)
class CommitRecord:
    """The record of a commit."""

    id: str
    machine_id: str
    created_at: float
    base: str
    spec: MachineSpec
    layers: tuple[str, ...]
    notes: tuple[str, ...] = field(default=())
    intent: str | None = None

    def commit(self) -> Commit:
        """The same, as the interface has it."""
        return Commit(
            id=self.id,
            machine_id=self.machine_id,
            created_at=self.created_at,
            fidelity="disk",
            notes=self.notes,
            intent=self.intent,
        )


def new_id(prefix: str = "") -> str:
    """A random id."""
    return prefix + secrets.token_hex(ID_BYTES)


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
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.root.chmod(0o700)  # As it may have been there: set-user-ID programs lie below.
        for directory in (self.layers, self._machines, self._commits, self._trash):
            directory.mkdir(exist_ok=True)
        for name in LOCKS:  # Now, since things must be removed when the disk is full.
            (self.root / name).touch(mode=0o600)

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Keep others from changing the store. Held for a few file operations only."""
        return locked(self.root / LOCKS[0])

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
        home.mkdir()
        try:
            (home / "disk").mkdir()
            if self._owner is not None:
                os.chown(home / "disk", self._owner, self._owner)
            (home / LOCK).touch(mode=0o600)
            self.write(record)
        except OSError:
            self.drop_machine(record.id)
            raise

    def write(self, record: MachineRecord) -> None:
        """Write down what is new of a machine."""
        _replace(self.home(record.id) / RECORD, record)

    def machine(self, machine_id: str) -> MachineRecord | None:
        """The record of a machine; None when there is no such machine."""
        return _read_machine(self.home(machine_id)) if _is_name(machine_id) else None

    def machines(self) -> list[MachineRecord]:
        """Every machine, oldest first."""
        found = [_read_machine(home) for home in self._machines.iterdir()]
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
            (self.layers / layer).mkdir()
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
        descriptor = os.open(self.home(machine_id) / LOCK, os.O_RDWR | os.O_CLOEXEC)
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
        place = self.home(machine_id) / LOCK
        try:
            with place.open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return ""
        except BlockingIOError:
            return place.read_text().partition(" ")[0] or "?"
        except FileNotFoundError:
            return ""

    def owner(self, machine_id: str) -> int | None:
        """The process id of the server that took a machine last, as long as that lives."""
        mark = (self.home(machine_id) / LOCK).read_text()
        pid = int(mark.partition(" ")[0] or 0)
        return pid if mark and mark == _process_mark(pid) else None

    def orphans(self, machine_id: str) -> list[int]:
        """The processes of a machine whose server has died, as far as `/proc` shows them.

        A process that is ending may no longer be listed and still hold the machine for a moment.
        """
        place = str(self.home(machine_id) / LOCK)
        return [pid for pid in _processes() if _has_inherited(pid, place)]

    # Commits

    def add_commit(self, record: CommitRecord) -> None:
        """Write down a commit."""
        _replace(self._commits / f"{record.id}.json", record)

    def commit(self, commit_id: str) -> CommitRecord | None:
        """The record of a commit; None when there is no such commit."""
        return _read_commit(self._commits / f"{commit_id}.json") if _is_name(commit_id) else None

    def commits(self) -> list[CommitRecord]:
        """Every commit, oldest first."""
        found = [_read_commit(path) for path in self._commits.glob("*.json")]
        return sorted((item for item in found if item), key=lambda item: item.created_at)

    # Removing

    def drop_machine(self, machine_id: str) -> None:
        """Discard a machine; `empty_trash` removes its files."""
        self._discard(self.home(machine_id))

    def drop_commit(self, commit_id: str) -> None:
        """Discard a commit."""
        if _is_name(commit_id):
            (self._commits / f"{commit_id}.json").unlink(missing_ok=True)

    def drop_garbage(self) -> None:
        """Put every layer that no record names into the trash."""
        layers = [path.name for path in self.layers.iterdir()]
        used = {layer for record in (*self.machines(), *self.commits()) for layer in record.layers}
        for layer in layers:
            if layer not in used:
                self._discard(self.layers / layer)

    def empty_trash(self) -> None:
        """Remove discarded files. May take long, and waits for other processes that do so."""
        # Two at once, of two servers even, would trip over each other.
        with locked(self.root / LOCKS[1]):
            for path in list(self._trash.iterdir()):
                remove_tree(path)

    def drop_old_bases(self) -> bool:
        """Discard the bases that earlier releases kept in the state directory; tell if it did.

        Those releases do not lock the bases that they use. Any process that has a file of the state
        directory open may be such a server, and then the bases stay.
        """
        if not self._old_bases.is_dir() or _others_use(self.root.parent):
            return False
        with self.locked():
            self._discard(self._old_bases)
        return True

    def _discard(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            path.rename(self._trash / new_id())


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Generator[None]:
    """Lock a file. Raises BlockingIOError if `wait` is false and another process holds the lock."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def remove_tree(path: Path) -> None:
    """Remove a directory that may not be there, whatever its modes and however deep it is.

    Subdirectories are moved up beside it first, so that no path ever gets too long.
    """
    pending = [path] if path.is_dir() else []
    while pending:
        directory = pending.pop()
        directory.chmod(0o700)
        for entry in list(os.scandir(directory)):
            if entry.is_dir(follow_symlinks=False):
                Path(entry.path).chmod(0o700)  # Only the owner of a writable one may move it.
                pending.append(Path(entry.path).rename(path.with_name(f"{path.name}.{new_id()}")))
            else:
                Path(entry.path).unlink()
        directory.rmdir()


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


def _is_name(text: str) -> bool:
    """Whether this could be an id, and so is safe as a file name."""
    return text.replace("-", "").isalnum() and text.isascii() and len(text) <= MAX_ID


def _replace(path: Path, record: MachineRecord | CommitRecord) -> None:
    """Write a record so that a reader sees the old one or the new one, whole."""
    making = path.with_name(f".{path.name}.{new_id()}")
    try:
        making.write_text(json.dumps(asdict(record)))
        making.replace(path)
    except OSError:
        making.unlink(missing_ok=True)
        raise


def _read_machine(home: Path) -> MachineRecord | None:
    try:
        about = json.loads((home / RECORD).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    about["spec"] = MachineSpec(**about["spec"])
    about["layers"] = tuple(about["layers"])
    return MachineRecord(**about)


def _read_commit(path: Path) -> CommitRecord | None:
    try:
        about = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    about["spec"] = MachineSpec(**about["spec"])
    about["layers"], about["notes"] = tuple(about["layers"]), tuple(about["notes"])
    return CommitRecord(**about)
