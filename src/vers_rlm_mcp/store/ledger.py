"""The ledger: every machine and commit, recorded before it exists, so that none is forgotten.

It is one SQLite file, shared by all servers that use a state directory. Calls are synchronous, and
may wait for another server for `BUSY_SECONDS`: an event loop makes them in a thread. A write is one
small transaction, made once per machine rather than per command, and flushed to the disk because a
remote machine outlives a power cut. A damaged file is set aside, and a new one is begun.

A server's claim on its machines is a file lock that it holds while it lives. The operating system
releases it however the process ends. Process ids would not do: they are reused, and mean nothing
across containers.

The public methods of `Ledger` are what another database would have to offer; nothing above knows
that this one is SQLite. `tests/store/test_ledger.py` is their contract.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import sqlite3
import threading
import time
import uuid
from dataclasses import asdict, dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, Final, TypeVar

from pydantic import TypeAdapter, ValidationError

from vers_rlm_mcp.errors import BackendUnavailable

from .files import locked, make_directory, open_private, set_aside

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path

logger = logging.getLogger(__name__)

BUSY_SECONDS: Final = 5.0
"""How long to wait for another server's transaction. One takes milliseconds."""

DAMAGE: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
LOCKED: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
"""Codes of SQLite's errors."""

SCHEMA: Final = (
    """
CREATE TABLE machines (
    number INTEGER PRIMARY KEY,
    intent TEXT NOT NULL,           -- the label of the machines asked for together
    backend TEXT NOT NULL,
    owner TEXT NOT NULL,            -- the server that asked
    run TEXT,
    parent TEXT,                    -- the commit or machine it comes from
    kept INTEGER NOT NULL,
    asked_at REAL NOT NULL,         -- times are seconds since the epoch
    machine_id TEXT,                -- NULL until the backend has answered
    abandoned_at REAL,              -- when asking failed: it may exist all the same
    deleted_at REAL
);
CREATE INDEX live_machines ON machines (backend) WHERE deleted_at IS NULL;
CREATE INDEX machines_by_id ON machines (machine_id);
CREATE INDEX machines_by_intent ON machines (intent);
CREATE TABLE commits (
    backend TEXT NOT NULL,
    id TEXT NOT NULL,
    machine_id TEXT NOT NULL,
    run TEXT,
    step INTEGER,
    created_at REAL NOT NULL,
    deleted_at REAL,
    PRIMARY KEY (backend, id)
);
""",
    """
ALTER TABLE machines ADD COLUMN principal TEXT;
ALTER TABLE commits ADD COLUMN principal TEXT;
""",
    """
CREATE TABLE asked_commits (        -- not recorded as made
    intent TEXT PRIMARY KEY,
    backend TEXT NOT NULL,
    owner TEXT NOT NULL,
    asked_at REAL NOT NULL
);
""",
    """
ALTER TABLE machines ADD COLUMN secret TEXT;    -- the label that proves the intent
""",
)
"""One entry per version of the file: the statements that make it from the version before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineRecord:
    """A row of ``machines``: a machine that was asked for."""

    number: int
    intent: str
    backend: str
    owner: str
    run: str | None
    parent: str | None
    kept: bool
    asked_at: float
    machine_id: str | None
    abandoned_at: float | None
    deleted_at: float | None
    principal: str | None
    """The client on whose behalf it was asked for; None stands for the server's operator."""
    secret: str | None
    """What the machine bears as a label beside its intent; None if an older version asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitRecord:
    """A row of ``commits``: a commit and the machine, run and step that it was made from."""

    backend: str
    id: str
    machine_id: str
    run: str | None
    step: int | None
    created_at: float
    principal: str | None
    deleted_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitIntent:
    """A commit that was asked for: it is being made, or its server was killed."""

    intent: str
    backend: str
    owner: str
    asked_at: float


Record = TypeVar("Record", MachineRecord, CommitRecord, CommitIntent)

TABLES: Final = {
    "machines": MachineRecord,
    "commits": CommitRecord,
    "asked_commits": CommitIntent,
}


class Ledger:
    """The ledger of one state directory, opened by one server.

    Args:
        directory: Holds ``ledger.sqlite3`` and the locks. Created if missing.

    Attributes:
        owner: The name of this server in the ledger.
        path: The file.

    Raises:
        BackendUnavailable: The file cannot be opened, read or written, or a newer version of this
            program made it. Every method raises it: no machine may be made that is not recorded.
    """

    def __init__(self, directory: Path) -> None:
        self.owner = uuid.uuid4().hex
        self.path = directory / "ledger.sqlite3"
        self._owners = directory / "owners"
        with self._translated():
            make_directory(self._owners)
            self._lock = _locked(self._owners / self.owner, os.O_CREAT)
        self._mutex = threading.Lock()
        try:
            with self._translated():
                self._database = _open_usable(self.path)
                self._place = _place(self.path)
        except BaseException:
            self._release()
            raise

    def ask(
        self,
        backend: str,
        *,
        count: int = 1,
        limit: int,
        run: str | None = None,
        parent: str | None = None,
        keep: bool = False,
        principal: str | None = None,
    ) -> str | None:
        """Record that `count` machines are about to be asked for, on behalf of `principal`.

        Returns:
            The intent, which the machines must bear as a label. None if this server would then have
            more than `limit` machines alive for that principal; nothing is recorded.
        """
        intent = uuid.uuid4().hex
        secret = secrets.token_hex()
        row = (intent, backend, self.owner, run, parent, keep, time.time(), principal, secret)
        with self._transaction() as database:
            (alive,) = database.execute(
                "SELECT count(*) FROM machines WHERE backend = ? AND owner = ?"
                " AND principal IS ? AND deleted_at IS NULL AND abandoned_at IS NULL",
                (backend, self.owner, principal),
            ).fetchone()
            if alive + count > limit:
                return None
            database.executemany(
                "INSERT INTO machines"
                " (intent, backend, owner, run, parent, kept, asked_at, principal, secret)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [row] * count,
            )
        return intent

    def bind(self, intent: str, machine_ids: Sequence[str]) -> None:
        """Record which machines the backend made for an intent. They may be fewer than asked."""
        records = self.machines_of_intent(intent)
        with self._transaction() as database:
            database.executemany(
                "UPDATE machines SET machine_id = ? WHERE number = ?",
                [(id_, record.number) for id_, record in zip(machine_ids, records, strict=False)],
            )

    def adopt(self, intent: str, machine_ids: Sequence[str]) -> None:
        """Record machines that an intent is found to have made; they are left over."""
        missing = [
            record for record in self.machines_of_intent(intent) if record.machine_id is None
        ]
        now = time.time()
        with self._transaction() as database:
            database.executemany(
                "UPDATE machines SET machine_id = ?, abandoned_at = coalesce(abandoned_at, ?),"
                " deleted_at = NULL WHERE number = ?",
                [
                    (id_, now, record.number)
                    for id_, record in zip(machine_ids, missing, strict=False)
                ],
            )

    def condemn(self, backend: str, machine_id: str) -> None:
        """Record that a machine is to be deleted, kept or not, and may still exist."""
        self._write(
            "UPDATE machines SET kept = 0, abandoned_at = coalesce(abandoned_at, ?)"
            " WHERE backend = ? AND machine_id = ? AND deleted_at IS NULL",
            time.time(),
            backend,
            machine_id,
        )

    def abandon(self, intent: str) -> None:
        """Record that asking failed. Machines that exist nevertheless are found by their label."""
        self._write("UPDATE machines SET abandoned_at = ? WHERE intent = ?", time.time(), intent)

    def keep(self, backend: str, machine_id: str) -> None:
        """Record that a machine is to outlive its run and its server."""
        self._write(
            "UPDATE machines SET kept = 1 WHERE backend = ? AND machine_id = ?",
            backend,
            machine_id,
        )

    def mark_deleted(self, backend: str, machine_id: str) -> None:
        """Record that a machine no longer exists."""
        self._write(
            "UPDATE machines SET deleted_at = ? WHERE backend = ? AND machine_id = ?"
            " AND deleted_at IS NULL",
            time.time(),
            backend,
            machine_id,
        )

    def close_record(self, record: MachineRecord) -> None:
        """Record that the machine of a record no longer exists, or never came to exist."""
        now = time.time()
        self._write("UPDATE machines SET deleted_at = ? WHERE number = ?", now, record.number)

    def ask_commit(self, backend: str) -> str:
        """Record that a commit is about to be asked for.

        Returns:
            The intent, which the commit must bear.
        """
        intent = uuid.uuid4().hex
        row = (intent, backend, self.owner, time.time())
        self._write("INSERT INTO asked_commits VALUES (?, ?, ?, ?)", *row)
        return intent

    def record_commit(self, record: CommitRecord, intent: str | None) -> None:
        """Record a commit that was made, and close its intent."""
        with self._transaction() as database:
            database.execute(
                "INSERT OR REPLACE INTO commits"
                " (backend, id, machine_id, run, step, created_at, deleted_at, principal)"
                " VALUES (:backend, :id, :machine_id, :run, :step, :created_at, :deleted_at,"
                " :principal)",
                asdict(record),
            )
            database.execute("DELETE FROM asked_commits WHERE intent = ?", (intent,))

    def close_intent(self, commit: CommitIntent) -> None:
        """Record that a commit that was asked for no longer exists, or never came to exist."""
        self._write("DELETE FROM asked_commits WHERE intent = ?", commit.intent)

    def mark_commit_deleted(self, backend: str, commit_id: str) -> None:
        """Record that a commit no longer exists."""
        self._write(
            "UPDATE commits SET deleted_at = ? WHERE backend = ? AND id = ?",
            time.time(),
            backend,
            commit_id,
        )

    def machines_of_intent(self, intent: str) -> Sequence[MachineRecord]:
        """The machines of one intent."""
        return self._machines("intent = ?", intent)

    def live(self, backend: str) -> Sequence[MachineRecord]:
        """The machines of all servers that were asked for and not deleted, oldest first."""
        return self._machines("backend = ? AND deleted_at IS NULL", backend)

    def machines(self, backend: str, machine_id: str | None = None) -> Sequence[MachineRecord]:
        """Every machine that was asked for, deleted ones included, oldest first.

        Args:
            backend: Its backend.
            machine_id: Only this one.
        """
        if machine_id is None:
            return self._machines("backend = ?", backend)
        return self._machines("backend = ? AND machine_id = ?", backend, machine_id)

    def commits(self, backend: str) -> Sequence[CommitRecord]:
        """Every commit, deleted ones included, oldest first."""
        query = "SELECT * FROM commits WHERE backend = ? ORDER BY created_at"
        return self._records(CommitRecord, query, backend)

    def checkpoints(self, backend: str | None = None) -> Sequence[CommitRecord]:
        """The commits that runs made at their steps and that are not deleted, oldest first."""
        query = (
            "SELECT * FROM commits WHERE step IS NOT NULL AND deleted_at IS NULL"
            " AND backend = coalesce(?, backend) ORDER BY created_at"
        )
        return self._records(CommitRecord, query, backend)

    def commit_intents(self, backend: str) -> Sequence[CommitIntent]:
        """The commits that were asked for and are not recorded as made."""
        query = "SELECT * FROM asked_commits WHERE backend = ?"
        return self._records(CommitIntent, query, backend)

    def is_alive(self, owner: str) -> bool:
        """Whether the server that this ledger calls `owner` still runs."""
        if owner == self.owner:
            return True
        lock = self._owners / owner
        with self._translated():
            try:
                descriptor = _locked(lock)
            except (FileNotFoundError, IsADirectoryError):
                return False
            except (BlockingIOError, PermissionError):
                return True
            lock.unlink(missing_ok=True)
            os.close(descriptor)
            return False

    def close(self) -> None:
        """Close the file and release the claim on this server's machines."""
        self._database.close()
        self._release()

    def _release(self) -> None:
        (self._owners / self.owner).unlink(missing_ok=True)
        os.close(self._lock)

    def _machines(self, condition: str, *values: str) -> Sequence[MachineRecord]:
        query = f"SELECT * FROM machines WHERE {condition} ORDER BY number"  # noqa: S608 - ours
        return self._records(MachineRecord, query, *values)

    def _records(self, kind: type[Record], query: str, *values: str | None) -> Sequence[Record]:
        """The rows of a table. Those that are no record are left out, which is logged once."""
        with self._translated(), self._alone():
            rows = [dict(row) for row in self._database.execute(query, values)]
        records: list[Record] = []
        for row in rows:
            try:
                records.append(_adapter(kind).validate_python(row))
            except ValidationError as error:
                _report(self.path, f"{kind.__name__} {tuple(row.values())}: {error.errors()[0]}")
        return records

    def _write(self, statement: str, *values: str | float | None) -> None:
        with self._transaction() as database:
            database.execute(statement, values)

    @contextlib.contextmanager
    def _transaction(self) -> Generator[sqlite3.Connection]:
        with self._translated(), self._alone():
            if _place(self.path) != self._place:
                raise FileNotFoundError("the file was removed or replaced while it was in use")
            with self._database:
                self._database.execute("BEGIN IMMEDIATE")
                yield self._database

    @contextlib.contextmanager
    def _alone(self) -> Generator[None]:
        """Keep other threads from the connection, which knows one transaction at a time."""
        if not self._mutex.acquire(timeout=2 * BUSY_SECONDS):
            raise TimeoutError("other calls of this server wait for it")
        try:
            yield
        finally:
            self._mutex.release()

    @contextlib.contextmanager
    def _translated(self) -> Generator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise BackendUnavailable(
                f"The ledger of machines, {self.path}, cannot be used ({error}), and without it "
                f"none is made. {_advise(error)}"
            ) from error


def _locked(path: Path, flags: int = 0) -> int:
    """Open and lock a file. Raises BlockingIOError if another process holds the lock."""
    descriptor = open_private(path, os.O_RDWR | flags)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _advise(error: Exception) -> str:
    """What to do about an error."""
    if isinstance(error, FileNotFoundError):
        return "Start this server again."
    if _code(error) in LOCKED or isinstance(error, TimeoutError):
        return "Another process holds it locked: try again, or end that process."
    if isinstance(error, _NewerVersion):
        return "Use that version, or choose another state directory (VERS_RLM_STATE_DIR)."
    if _is_damage(error):
        return "Start this server again, which sets a damaged file aside."
    return (
        "Make its directory writable, free space on its disk, or choose another state directory "
        "(VERS_RLM_STATE_DIR)."
    )


@cache
def _adapter(kind: type[Record]) -> TypeAdapter[Record]:
    return TypeAdapter(kind)


@cache
def _report(path: Path, fault: str) -> None:
    """Log, once, a row that cannot be read."""
    logger.warning("%s has a damaged row, which is left out: %s", path, fault)


def _place(path: Path) -> tuple[int, int] | None:
    """What a path stands for; None if there is no such file."""
    try:
        about = path.stat()
    except FileNotFoundError:
        return None
    return about.st_dev, about.st_ino


def _code(error: Exception) -> int:
    """The primary code of SQLite's error; 0 for others."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _is_damage(error: Exception) -> bool:
    return isinstance(error, _Damaged) or _code(error) in DAMAGE


class _Damaged(sqlite3.DatabaseError):
    """The file is a database, but not a whole ledger."""


class _NewerVersion(sqlite3.DatabaseError):
    """A newer version of this program made the file."""


def _open_usable(path: Path) -> sqlite3.Connection:
    """Open the file. A damaged one is set aside first."""
    try:
        return _open_database(path)
    except sqlite3.Error as error:
        if not _is_damage(error) and not path.is_dir():
            raise
    with locked(path.with_suffix(".lock"), BUSY_SECONDS):
        try:
            return _open_database(path)  # another server may have set it aside by now
        except sqlite3.Error as error:
            advice = "Machines that it recorded are found again, and named by `machines list`"
            set_aside(path, error, advice)
            for part in ("-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    path.with_name(path.name + part).unlink()
        return _open_database(path)


def _open_database(path: Path) -> sqlite3.Connection:
    with contextlib.suppress(IsADirectoryError):  # SQLite will say so
        os.close(open_private(path, os.O_RDWR | os.O_CREAT))
    # The module would begin a transaction at its first write, too late to lock what was read.
    database = sqlite3.connect(
        path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    try:
        database.row_factory = sqlite3.Row
        database.text_factory = lambda data: data.decode(errors="replace")  # pyright: ignore
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        _migrate(database)
        _check(database)
    except BaseException:
        database.close()
        raise
    return database


def _migrate(database: sqlite3.Connection) -> None:
    """Bring the file to this schema. Two servers may do so at the same time."""
    with database:
        database.execute("BEGIN IMMEDIATE")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version > len(SCHEMA):
            raise _NewerVersion(f"a newer version of this program made it: {version}")
        for change in SCHEMA[version:]:
            for statement in change.split(";\n"):
                database.execute(statement)
        database.execute(f"PRAGMA user_version = {len(SCHEMA)}")


def _check(database: sqlite3.Connection) -> None:
    """Check that the file is whole. Raises `sqlite3.Error`."""
    (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise _Damaged(found)
    for table, kind in TABLES.items():
        columns = {row["name"] for row in database.execute(f"PRAGMA table_info({table})")}
        if missing := {field.name for field in fields(kind)} - columns:
            raise _Damaged(f"{table} lacks {', '.join(sorted(missing))}")
