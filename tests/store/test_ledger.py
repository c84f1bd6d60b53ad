"""The ledger: what is recorded, on whose behalf, and which servers are alive."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from vers_rlm_mcp.errors import BackendUnavailable
from vers_rlm_mcp.store import CommitRecord, Ledger
from vers_rlm_mcp.store.ledger import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

COMMIT = CommitRecord(
    backend="fake",
    id="commit-1",
    machine_id="fake-1",
    run="run-1",
    step=3,
    created_at=12.5,
    principal="ann",
)

OTHER_SERVER = """
import pathlib, sys
from vers_rlm_mcp.store import Ledger
ledger = Ledger(pathlib.Path(sys.argv[1]))
ledger.bind(ledger.ask("fake", limit=1), ["fake-other"])
print(ledger.owner, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path)
    yield ledger
    ledger.close()


@pytest.fixture
def other_server(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", OTHER_SERVER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


def ask(ledger: Ledger, count: int = 1, *, run: str | None = None) -> str:
    intent = ledger.ask("fake", count=count, limit=100, run=run)
    assert intent is not None
    return intent


def test_a_machine_is_on_disk_before_it_has_an_id(ledger: Ledger) -> None:
    intent = ledger.ask("fake", limit=1, run="run-1", parent="commit-1", keep=True)
    with sqlite3.connect(ledger.path) as elsewhere:
        rows = elsewhere.execute(
            "SELECT intent, owner, run, parent, kept, machine_id FROM machines"
        )
        assert rows.fetchall() == [(intent, ledger.owner, "run-1", "commit-1", 1, None)]
    elsewhere.close()


def test_a_machine_is_bound_kept_and_closed(ledger: Ledger) -> None:
    ledger.bind(ask(ledger), ["fake-1"])
    (record,) = ledger.live("fake")
    assert (record.machine_id, record.kept) == ("fake-1", False)
    ledger.keep("fake", "fake-1")
    assert ledger.live("fake")[0].kept
    ledger.mark_deleted("fake", "fake-1")
    assert ledger.live("fake") == []
    assert ledger.machines("fake", "fake-1") == ledger.machines("fake")
    assert ledger.machines("fake", "fake-2") == []
    assert ledger.machines("fake")[0].deleted_at is not None


def test_machines_asked_for_together_share_an_intent(ledger: Ledger) -> None:
    intent = ask(ledger, 3)
    ledger.bind(intent, ["a", "b", "c"])
    assert [record.machine_id for record in ledger.machines_of_intent(intent)] == ["a", "b", "c"]


def test_nothing_is_written_beyond_the_limit(ledger: Ledger) -> None:
    assert ledger.ask("fake", count=2, limit=3)
    assert ledger.ask("fake", count=2, limit=3) is None
    assert len(ledger.live("fake")) == 2
    assert ledger.ask("fake", limit=3)


def test_failed_and_deleted_machines_do_not_count(ledger: Ledger) -> None:
    failed = ledger.ask("fake", limit=1)
    assert failed is not None
    ledger.abandon(failed)
    alive = ledger.ask("fake", limit=1)
    assert alive is not None
    ledger.bind(alive, ["fake-1"])
    assert ledger.ask("fake", limit=1) is None
    ledger.mark_deleted("fake", "fake-1")
    assert ledger.ask("fake", limit=1) is not None


def test_machines_of_other_backends_and_servers_do_not_count(
    ledger: Ledger, tmp_path: Path
) -> None:
    ask(ledger)
    other = Ledger(tmp_path)
    try:
        assert ledger.ask("vers", limit=1) is not None
        assert other.ask("fake", limit=1) is not None
    finally:
        other.close()


def test_a_commit_is_written_with_its_place_in_a_run(ledger: Ledger) -> None:
    ledger.record_commit(COMMIT, None)
    assert ledger.commits("fake") == [COMMIT]
    assert ledger.checkpoints("fake") == [COMMIT]
    ledger.mark_commit_deleted("fake", "commit-1")
    assert ledger.commits("fake")[0].deleted_at is not None
    assert ledger.checkpoints("fake") == []


def test_a_commit_that_was_asked_for_is_open_until_it_is_written(ledger: Ledger) -> None:
    intent = ledger.ask_commit("fake")
    ledger.ask_commit("fake")
    _, lost = ledger.commit_intents("fake")
    ledger.record_commit(COMMIT, intent)
    assert ledger.commit_intents("fake") == [lost]
    assert (lost.owner, ledger.commit_intents("vers")) == (ledger.owner, [])
    ledger.close_intent(lost)
    assert ledger.commit_intents("fake") == []


def test_what_is_written_is_there_after_a_restart(tmp_path: Path) -> None:
    first = Ledger(tmp_path)
    first.bind(ask(first), ["fake-1"])
    first.close()
    second = Ledger(tmp_path)
    assert [record.machine_id for record in second.live("fake")] == ["fake-1"]
    assert not second.is_alive(first.owner)
    second.close()


def test_a_server_is_alive_until_it_is_killed(
    ledger: Ledger, other_server: subprocess.Popen[str]
) -> None:
    assert other_server.stdout
    owner = other_server.stdout.readline().strip()
    assert ledger.is_alive(owner)
    assert ledger.is_alive(ledger.owner)
    assert not ledger.is_alive("nobody")
    other_server.kill()
    other_server.wait(10)
    assert not ledger.is_alive(owner)
    assert not ledger.is_alive(owner)
    assert [record.owner for record in ledger.live("fake")] == [owner]


def test_many_servers_write_at_the_same_time(tmp_path: Path) -> None:
    def serve() -> None:
        ledger = Ledger(tmp_path)
        for _ in range(20):
            ledger.bind(ask(ledger), [ledger.owner])
        ledger.close()

    threads = [threading.Thread(target=serve) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger = Ledger(tmp_path)
    assert len(ledger.live("fake")) == 100
    ledger.close()


def overwrite(path: Path, data: bytes, place: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(data)


def change(statement: str) -> Callable[[Path], object]:
    def damage(path: Path) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as database:
            database.execute(statement)

    return damage


def in_its_place(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no database": lambda path: path.write_bytes(b"this is no database" * 1000),
    "NULs": lambda path: path.write_bytes(b"\0" * path.stat().st_size),
    "a damaged page": lambda path: overwrite(path, b"\xff" * 4096, 4096),
    "cut short": lambda path: os.truncate(path, 5000),
    "a table is missing": change("DROP TABLE commits"),
    "a column is missing": change("ALTER TABLE machines DROP COLUMN parent"),
    "a directory": in_its_place,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_set_aside_and_told(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(Ledger(tmp_path)) as ledger:
        assert ledger.ask("fake", limit=1)
    DAMAGES[damage](tmp_path / "ledger.sqlite3")
    for _ in range(2):
        with closing(Ledger(tmp_path)) as ledger:
            assert ledger.live("fake") == []
    (message,) = caplog.messages
    assert f"{tmp_path}/ledger.sqlite3 cannot be used" in message
    assert len(list(tmp_path.glob("ledger.sqlite3.damaged-*"))) == 1
    assert list((tmp_path / "owners").iterdir()) == []


@pytest.mark.parametrize("size", [0, 1])
def test_a_file_that_a_crash_left_empty_is_used(tmp_path: Path, size: int) -> None:
    (tmp_path / "ledger.sqlite3").write_bytes(b"\0" * size)
    with closing(Ledger(tmp_path)) as ledger:
        assert ledger.ask("fake", limit=1)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE machines SET asked_at = 'yesterday' WHERE number = 1",
        "UPDATE machines SET kept = 'perhaps' WHERE number = 1",
        "UPDATE machines SET intent = x'ff' WHERE number = 1",
        "UPDATE machines SET parent = CAST(x'ff' AS TEXT), asked_at = x'00' WHERE number = 1",
    ],
)
def test_a_damaged_row_is_left_out_and_told_once(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(Ledger(tmp_path)) as ledger:
        ledger.ask("fake", limit=2)
        ledger.ask("fake", limit=2)
        change(damage)(ledger.path)
        change("ALTER TABLE machines ADD COLUMN later TEXT")(ledger.path)
        for _ in range(2):
            assert [record.number for record in ledger.live("fake")] == [2]
    (message,) = caplog.messages
    assert "damaged row" in message


def test_a_ledger_whose_directory_was_removed_says_so(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "state")
    shutil.rmtree(tmp_path / "state")
    with pytest.raises(BackendUnavailable, match=r"removed or replaced.*Start this server again"):
        ledger.ask("fake", limit=1)
    ledger.close()


def test_a_locked_ledger_says_so_in_time(ledger: Ledger) -> None:
    with closing(sqlite3.connect(ledger.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(BackendUnavailable, match="Another process holds it locked"):
            ledger.ask("fake", limit=1)
    assert ledger.ask("fake", limit=1)


@pytest.mark.parametrize("mask", [0, 0o777])
def test_no_one_else_can_read_it_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with closing(Ledger(tmp_path / "state")) as ledger:
            ledger.ask("fake", limit=1)
            for path in [tmp_path / "state", *(tmp_path / "state").rglob("*")]:
                mode = stat.S_IMODE(path.stat().st_mode)
                assert mode == (0o700 if path.is_dir() else 0o600), path
    finally:
        os.umask(before)


def test_a_file_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    Ledger(tmp_path).close()
    with sqlite3.connect(tmp_path / "ledger.sqlite3") as newer:
        newer.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(BackendUnavailable, match="newer version of this program made it: 99"):
        Ledger(tmp_path)


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BackendUnavailable, match="VERS_RLM_STATE_DIR"):
        Ledger(tmp_path / "file" / "state")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(BackendUnavailable, match="directory writable"):
        Ledger(tmp_path)


def test_a_file_of_the_first_version_is_brought_up_to_date_with_what_it_holds(
    tmp_path: Path,
) -> None:
    with sqlite3.connect(tmp_path / "ledger.sqlite3") as older:
        for statement in SCHEMA[0].split(";\n"):
            older.execute(statement)
        older.execute(
            "INSERT INTO machines (intent, backend, owner, kept, asked_at, machine_id)"
            " VALUES ('i', 'fake', 'gone', 1, 12.5, 'fake-1')"
        )
        older.execute("INSERT INTO commits VALUES ('fake', 'c', 'fake-1', NULL, NULL, 12.5, NULL)")
        older.execute("PRAGMA user_version = 1")
    older.close()
    for _ in range(2):
        with closing(Ledger(tmp_path)) as ledger:
            (machine,) = ledger.live("fake")
            (commit,) = ledger.commits("fake")
            assert (machine.machine_id, machine.principal) == ("fake-1", None)
            assert (commit.id, commit.principal) == ("c", None)


def test_the_limit_is_each_principals_own(ledger: Ledger) -> None:
    assert ledger.ask("fake", limit=1)
    assert ledger.ask("fake", limit=1, principal="ann")
    assert ledger.ask("fake", limit=1, principal="ann") is None
    assert ledger.ask("fake", limit=1, principal="bob")


def test_a_ledger_that_fails_later_says_so(ledger: Ledger) -> None:
    with sqlite3.connect(ledger.path) as elsewhere:
        elsewhere.execute("DROP TABLE machines")
    elsewhere.close()
    with pytest.raises(BackendUnavailable, match="without it none is made"):
        ledger.ask("fake", limit=1)
