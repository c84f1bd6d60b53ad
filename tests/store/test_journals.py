"""Who has a journal open, as seen by many at once."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

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
