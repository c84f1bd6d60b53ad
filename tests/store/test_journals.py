"""Who has a journal open, as seen by many at once."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from vers_rlm_mcp.errors import UnknownHandle, UsageError
from vers_rlm_mcp.store import Journal, Journals, StoredJournal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOOK = """
import sys
from pathlib import Path
from vers_rlm_mcp.store import StoredJournal
journal = StoredJournal(Path(sys.argv[1]))
print("looking", flush=True)
while True:
    if journal.is_open() != (sys.argv[2] == "open"):
        print("mistaken", flush=True)
"""
LOOKERS = 4


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    with Journal(tmp_path / "run-1") as journal:
        journal.append({"event": "x"})
    return tmp_path / "run-1"


def lookers(directory: Path, state: str) -> Iterator[subprocess.Popen[bytes]]:
    for _ in range(LOOKERS):
        argv = [sys.executable, "-c", LOOK, str(directory), state]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE)
        assert process.stdout
        assert process.stdout.readline() == b"looking\n"
        yield process


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    """End those that look, and see that none was mistaken."""
    for process in processes:
        process.kill()
    assert [process.communicate()[0] for process in processes] == [b""] * LOOKERS


def test_many_that_look_at_once_do_not_take_each_other_for_a_writer(directory: Path) -> None:
    processes = list(lookers(directory, "closed"))
    assert not any(StoredJournal(directory).is_open() for _ in range(2_000))
    end(processes)


def test_those_that_look_never_keep_a_journal_from_being_continued(directory: Path) -> None:
    processes = list(lookers(directory, "whatever"))
    try:
        for _ in range(200):
            StoredJournal(directory).append().close()
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_a_journal_that_is_written_is_open_for_all_that_look(directory: Path) -> None:
    with StoredJournal(directory).append():
        processes = list(lookers(directory, "open"))
        assert all(StoredJournal(directory).is_open() for _ in range(2_000))
        with pytest.raises(UsageError, match="under way in another process"):
            StoredJournal(directory).append()
        end(processes)


def test_a_journal_is_found_by_its_run_and_gone_when_it_is_deleted(tmp_path: Path) -> None:
    journals = Journals(tmp_path)
    with journals.new() as journal:
        journal.append({"event": "x", "text": "y" * 20_000})
    (stored,) = journals.all()
    assert journals.of(journal.run_id) == stored
    assert stored.size > 20_000
    assert Journals(tmp_path, "somebody-else").all() == []
    stored.delete()
    with pytest.raises(UnknownHandle):
        journals.of(journal.run_id)


LINE = b'{"at": 2.0, "event": "y"}\n'

DAMAGED_LINES = {
    "empty": b"\n",
    "NULs": b"\0" * 100 + b"\n",
    "cut short": b'{"at": 1.0, "ev\n',
    "not UTF-8": b'\xff\xfe{"at"\n',
    "a list": b"[1]\n",
    "no time": b'{"event": "x"}\n',
    "no time at all": b'{"at": NaN, "event": "x"}\n',
    "an infinite time": b'{"at": 1e999, "event": "x"}\n',
    "a huge time": b'{"at": 1' + b"0" * 400 + b', "event": "x"}\n',
    "a huge number": b'{"at": 1, "event": ' + b"1" * 5000 + b"}\n",
    "a text for a time": b'{"at": "now", "event": "x"}\n',
    "deep": b'{"at": 1, "event": ' + b"[" * 100_000 + b"\n",
    "deep and closed": b'{"at": 1, "sha256": ' + b"[" * 900 + b"]" * 900 + b', "event": "y"}\n',
}


@pytest.mark.parametrize("damage", DAMAGED_LINES)
def test_lines_around_a_damaged_one_are_read_and_it_is_told_once(
    directory: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (directory / "events.jsonl").open("ab") as file:
        file.write(DAMAGED_LINES[damage] + LINE)
    for _ in range(2):
        read = [line["event"] for _, line in StoredJournal(directory).lines()]
        assert (read[0], read[-1]) == ("x", "y")
        assert len(read) == 2 or damage == "deep and closed"
    assert [str(directory) in message for message in caplog.messages] in ([True], [])
    assert caplog.messages or damage == "deep and closed"


@pytest.mark.parametrize("damage", [b"", b"\0" * 20_000, b"a" * 19_999])
def test_a_damaged_text_beside_a_journal_is_not_taken_for_whole(
    directory: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with Journal(directory) as journal:
        journal.append({"event": "text", "text": "a" * 20_000})
    (stored,) = (directory / "values").iterdir()
    stored.write_bytes(damage)
    (_, line) = list(StoredJournal(directory).lines())[-1]
    assert line["text"] != "a" * 20_000
    assert not isinstance(line["text"], str)
    assert stored.name in caplog.text
    with Journal(directory) as journal:
        journal.append({"event": "text", "text": "a" * 20_000})
    (_, line) = list(StoredJournal(directory).lines())[-1]
    assert line["text"] == "a" * 20_000 or len(damage) == 20_000


@pytest.mark.parametrize("kind", ["directory", "FIFO", "loop"])
def test_what_is_no_journal_is_set_aside_and_the_others_are_listed(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    journals = Journals(tmp_path)
    with journals.new() as journal:
        pass
    place = tmp_path / "runs" / "run-2" / "events.jsonl"
    place.parent.mkdir()
    if kind == "directory":
        place.mkdir()
    elif kind == "FIFO":
        os.mkfifo(place)
    else:
        place.symlink_to(place)
    (tmp_path / "runs" / "run-3").write_text("a file")
    for _ in range(2):
        assert [each.run_id for each in journals.all()] == [journal.run_id]
    assert caplog.text.count("was set aside") == (kind != "loop")


@pytest.mark.parametrize("mask", [0, 0o777])
def test_no_one_else_can_read_a_journal_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with Journals(tmp_path / "state").new() as journal:
            journal.append({"event": "text", "text": "a" * 20_000})
    finally:
        os.umask(before)
    for path in [tmp_path / "state", *(tmp_path / "state").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_value_that_is_nested_too_deep_to_be_written_ends_the_record_and_not_the_run(
    tmp_path: Path,
) -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    with Journal(tmp_path / "run-1") as journal:
        journal.append({"event": "x", "value": value})
        assert journal.problem
        assert "breaks off" in journal.problem
    while value:
        value = value.pop()
