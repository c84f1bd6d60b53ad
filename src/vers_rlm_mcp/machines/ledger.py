"""The ledger: every machine, written down before it exists, so that none can be forgotten.

One SQLite file, shared by all servers over the same state directory. Calls are synchronous: a
write is one small transaction, flushed to the disk because a remote machine outlives a power cut,
and is made once per machine, not per command.

A server's claim on its machines is a file lock that it holds while it lives. The operating system
lets go of it whatever ends the process, so there is no guessing from process numbers, which are
used again and mean nothing across containers.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from vers_rlm_mcp.errors import BackendUnavailable

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path

    from .base import Commit

BUSY_SECONDS: Final = 5.0
"""How long to wait for another server's transaction, which takes milliseconds."""

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
CREATE TABLE asked_commits (        -- that nobody has written down as made
    intent TEXT PRIMARY KEY,
    backend TEXT NOT NULL,
    owner TEXT NOT NULL,
    asked_at REAL NOT NULL
);
""",
)
"""What makes each version of the file of the one before it, and the first of an empty one."""


@dataclass(frozen=True, slots=True)
class MachineRecord:
    """A machine that was asked for, in the words of the table."""

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
    """The client on whose behalf; None: whoever runs the server."""


@dataclass(frozen=True, slots=True)
class CommitRecord:
    """Where a commit comes from."""

    backend: str
    id: str
    machine_id: str
    run: str | None
    step: int | None
    created_at: float
    deleted_at: float | None
    principal: str | None


@dataclass(frozen=True, slots=True)
class AskedCommit:
    """A commit that was asked for: perhaps it is being made, perhaps its server was killed."""

    intent: str
    backend: str
    owner: str
    asked_at: float


class Ledger:
    """The ledger of one state directory, opened by one server (`owner` is its name in it).

    Args:
        directory: Holds ``ledger.sqlite3`` and the locks; made if missing.

    Raises:
        BackendUnavailable: The file cannot be opened, read or written, or a newer version made it.
            Every method raises it too: where nothing can be written down, no machine may be made.
    """

    def __init__(self, directory: Path) -> None:
        self.owner = uuid.uuid4().hex
        self.path = directory / "ledger.sqlite3"
        self._owners = directory / "owners"
        with self._translated():
            self._owners.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(self._owners / self.owner, os.O_CREAT)
        try:
            with self._translated():
                self._database = _opened(self.path)
        except BaseException:
            self._let_go()
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
        """Write down that `count` machines are about to be asked for, on behalf of `principal`.

        Returns:
            The intent, which the machines must bear as a label; None, and nothing is written, if
            this server would then have more than `limit` machines alive for that principal, who is
            not to notice others.
        """
        intent = uuid.uuid4().hex
        row = (intent, backend, self.owner, run, parent, keep, time.time(), principal)
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
                " (intent, backend, owner, run, parent, kept, asked_at, principal)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [row] * count,
            )
        return intent

    def bind(self, intent: str, machine_ids: Sequence[str]) -> None:
        """Write down which machines the backend made for an intent: all, or fewer than asked."""
        records = self.asked(intent)
        with self._transaction() as database:
            database.executemany(
                "UPDATE machines SET machine_id = ? WHERE number = ?",
                [(id_, record.number) for id_, record in zip(machine_ids, records, strict=False)],
            )

    def abandon(self, intent: str) -> None:
        """Write down that asking failed; what may exist all the same is found by its label."""
        self._write("UPDATE machines SET abandoned_at = ? WHERE intent = ?", time.time(), intent)

    def keep(self, backend: str, machine_id: str) -> None:
        """Let a machine outlive its run and its server."""
        self._write(
            "UPDATE machines SET kept = 1 WHERE backend = ? AND machine_id = ?",
            backend,
            machine_id,
        )

    def deleted(self, backend: str, machine_id: str) -> None:
        """Write down that a machine is no more."""
        self._write(
            "UPDATE machines SET deleted_at = ? WHERE backend = ? AND machine_id = ?"
            " AND deleted_at IS NULL",
            time.time(),
            backend,
            machine_id,
        )

    def closed(self, record: MachineRecord) -> None:
        """Write down that what a record stands for is no more, or never came to be."""
        now = time.time()
        self._write("UPDATE machines SET deleted_at = ? WHERE number = ?", now, record.number)

    def ask_commit(self, backend: str) -> str:
        """Write down that a commit is about to be asked for.

        Returns:
            The intent, which the commit must bear.
        """
        intent = uuid.uuid4().hex
        row = (intent, backend, self.owner, time.time())
        self._write("INSERT INTO asked_commits VALUES (?, ?, ?, ?)", *row)
        return intent

    def committed(
        self,
        backend: str,
        commit: Commit,
        *,
        run: str | None = None,
        step: int | None = None,
        principal: str | None = None,
    ) -> None:
        """Write down a commit, where in a run it was made, and on whose behalf."""
        made = (backend, commit.id, commit.machine_id, run, step, commit.created_at, principal)
        with self._transaction() as database:
            database.execute(
                "INSERT OR REPLACE INTO commits"
                " (backend, id, machine_id, run, step, created_at, principal)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                made,
            )
            database.execute("DELETE FROM asked_commits WHERE intent = ?", (commit.intent,))

    def close_asked(self, commit: AskedCommit) -> None:
        """Write down that a commit that was asked for is no more, or never came to be."""
        self._write("DELETE FROM asked_commits WHERE intent = ?", commit.intent)

    def commit_deleted(self, backend: str, commit_id: str) -> None:
        """Write down that a commit is no more."""
        self._write(
            "UPDATE commits SET deleted_at = ? WHERE backend = ? AND id = ?",
            time.time(),
            backend,
            commit_id,
        )

    def asked(self, intent: str) -> Sequence[MachineRecord]:
        """The machines of one intent."""
        return self._machines("intent = ?", intent)

    def live(self, backend: str) -> Sequence[MachineRecord]:
        """Machines that were asked for and not deleted, of all servers, oldest first."""
        return self._machines("backend = ? AND deleted_at IS NULL", backend)

    def knows(self, backend: str, machine_id: str, *, principal: str | None = None) -> bool:
        """Whether a machine was made through this ledger, for `principal` if one is named.

        It may have been deleted since.
        """
        records = self._machines("backend = ? AND machine_id = ?", backend, machine_id)
        return any(principal in (None, record.principal) for record in records)

    def has_to_itself(self, backend: str, parent: str) -> bool:
        """Whether nobody else is likely to copy this: a run's own machine or commit, not kept."""
        machines = self._machines("backend = ? AND machine_id = ?", backend, parent)
        commits = [commit for commit in self.commits(backend) if commit.id == parent]
        return any(not machine.kept for machine in machines) or any(
            commit.run is not None for commit in commits
        )

    def machines(self, backend: str) -> Sequence[MachineRecord]:
        """Every machine that was asked for, the deleted ones too, oldest first."""
        return self._machines("backend = ?", backend)

    def commits(self, backend: str) -> Sequence[CommitRecord]:
        """Every commit, the deleted ones too, oldest first."""
        rows = self._rows("SELECT * FROM commits WHERE backend = ? ORDER BY created_at", backend)
        return [CommitRecord(**row) for row in rows]

    def checkpoints(self, backend: str) -> Sequence[CommitRecord]:
        """The commits that runs made at their steps and that are not deleted, oldest first."""
        rows = self._rows(
            "SELECT * FROM commits WHERE backend = ? AND step IS NOT NULL AND deleted_at IS NULL"
            " ORDER BY created_at",
            backend,
        )
        return [CommitRecord(**row) for row in rows]

    def asked_commits(self, backend: str) -> Sequence[AskedCommit]:
        """The commits that were asked for and are not written down as made."""
        rows = self._rows("SELECT * FROM asked_commits WHERE backend = ?", backend)
        return [AskedCommit(**row) for row in rows]

    def is_alive(self, owner: str) -> bool:
        """Whether the server that is called `owner` in this ledger still runs."""
        if owner == self.owner:
            return True
        lock = self._owners / owner
        with self._translated():
            try:
                descriptor = _locked(lock)
            except FileNotFoundError:
                return False
            except BlockingIOError:
                return True
            lock.unlink(missing_ok=True)
            os.close(descriptor)
            return False

    def close(self) -> None:
        """Close the file and give up the claim on this server's machines."""
        self._database.close()
        self._let_go()

    def _let_go(self) -> None:
        (self._owners / self.owner).unlink(missing_ok=True)
        os.close(self._lock)

    def _machines(self, condition: str, *values: str) -> Sequence[MachineRecord]:
        query = f"SELECT * FROM machines WHERE {condition} ORDER BY number"  # noqa: S608 - ours
        return [_machine_record(row) for row in self._rows(query, *values)]

    def _rows(self, query: str, *values: str) -> Sequence[dict[str, Any]]:
        with self._translated():
            return [dict(row) for row in self._database.execute(query, values)]

    def _write(self, statement: str, *values: str | float | None) -> None:
        with self._transaction() as database:
            database.execute(statement, values)

    @contextlib.contextmanager
    def _transaction(self) -> Generator[sqlite3.Connection]:
        with self._translated(), self._database:
            self._database.execute("BEGIN IMMEDIATE")
            yield self._database

    @contextlib.contextmanager
    def _translated(self) -> Generator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise BackendUnavailable(
                f"The ledger of machines, {self.path}, cannot be used ({error}), and without it "
                "none is made. See that its directory can be written and has space left, move a "
                "damaged file away, or choose another state directory (VERS_RLM_STATE_DIR)."
            ) from error


def _locked(path: Path, flags: int = 0) -> int:
    """Open and lock a file at once, or raise BlockingIOError when someone else holds it."""
    descriptor = os.open(path, os.O_RDWR | flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _machine_record(row: dict[str, Any]) -> MachineRecord:
    row["kept"] = bool(row["kept"])  # SQLite has numbers only
    return MachineRecord(**row)


def _opened(path: Path) -> sqlite3.Connection:
    # Transactions are begun by hand: the module's own would begin them too late to lock.
    database = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        database.row_factory = sqlite3.Row
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        _migrate(database)
    except BaseException:
        database.close()
        raise
    return database


def _migrate(database: sqlite3.Connection) -> None:
    """Bring the file to this schema; two servers may do so at the same time."""
    with database:
        database.execute("BEGIN IMMEDIATE")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version > len(SCHEMA):
            raise sqlite3.DatabaseError(f"a newer version of this program made it: {version}")
        for change in SCHEMA[version:]:
            for statement in change.split(";\n"):
                database.execute(statement)
        database.execute(f"PRAGMA user_version = {len(SCHEMA)}")
