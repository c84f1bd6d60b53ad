"""Events are read as they are written, whatever version wrote them."""

from __future__ import annotations

import dataclasses
import json
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vers_rlm_mcp.rlm import Event, StepFinished
from vers_rlm_mcp.runs import events, load_past, load_record, run_lineage, summary
from vers_rlm_mcp.runs.history import read_events
from vers_rlm_mcp.store import Journal, StoredJournal
from vers_rlm_mcp.values import Usage

if TYPE_CHECKING:
    from collections.abc import Callable

OLD_STATE = Path(__file__).parent.parent / "old_state"

STARTED = events.RunStarted(
    run_id="run-1",
    signature="-> x",
    machine_id="m1",
    model="a:root",
    sub_model="a:sub",
    max_steps=3,
    inputs={},
)
STEP = StepFinished(
    step=1,
    max_steps=3,
    reasoning="",
    code="1",
    output="1\n",
    error=None,
    seconds=0.5,
    usage=Usage(1, 2),
)
ENDED = events.RunFinished(
    run_id="run-1",
    status="finished",
    outputs={"x": "1"},
    reason="The model called FINAL.",
    steps=1,
    usage=Usage(1, 2),
    seconds=1.5,
)


def old_lines(archive: str) -> list[str]:
    """The lines of all journals in a frozen state directory."""
    with tarfile.open(OLD_STATE / archive) as members:
        files = [
            members.extractfile(each) for each in members if each.name.endswith("events.jsonl")
        ]
        return [line for file in files if file for line in file.read().decode().splitlines()]


@pytest.mark.parametrize("archive", ["bubblewrap.tar.xz", "vers.tar.xz"])
def test_every_event_of_an_older_version_is_read_and_written_back_as_it_was(archive: str) -> None:
    lines = old_lines(archive)
    assert len(lines) > 100
    for line in lines:
        fields = json.loads(line)
        event = events.read_event(fields)
        # Texts that are stored beside the journal are put in their places before.
        if event is None and '"sha256"' in line:
            continue
        assert event, line
        written = without_new({"at": fields["at"], **event.to_json()}, fields, event)
        assert json.dumps(written, ensure_ascii=False) == line


def without_new(written: dict[str, Any], fields: dict[str, Any], event: Event) -> dict[str, Any]:
    """What is written of an event, without the fields that the older version did not know.

    These have their defaults.
    """
    known = event.event if isinstance(event, events.InChild) else event
    new = written.keys() - fields.keys()
    for each in dataclasses.fields(known):
        if each.name in new:
            assert getattr(known, each.name) == each.default, each.name
    return {name: value for name, value in written.items() if name not in new}


@pytest.mark.parametrize(
    "damage",
    [
        b"\n",
        b"null\n",
        b"[" * 100_000 + b"\n",
        b"\xff\xfe\x00\n",
        b'{"at": 1.0}\n',
        b'{"at": 1.0, "event": "from_the_future", "step": 1}\n',
        b'{"at": 1.0, "event": ["run_started"]}\n',
        b'{"at": 1.0, "event": "run_started"}\n',
        b'{"at": "now", "event": "step_finished"}\n',
        b'{"at": 1.0, "event": "run_finished", "status": "no such"}\n',
        b'{"at": 1.0, "event": "checkpoint_made", "step": "x"}\n',
        b'{"at": 1.0, "event": "cell_finished", "step": 1, "in": 7}\n',
        b'{"at": 1.0, "event": "model_replied", "step": 1, "text": {"sha256": "' + b"0" * 64,
    ],
)
def test_a_line_that_cannot_be_read_does_not_keep_the_others_from_being_read(
    tmp_path: Path, damage: bytes
) -> None:
    directory = tmp_path / "run-1"
    with Journal(directory) as journal:
        journal.append(STARTED.to_json())
        journal.append(STEP.to_json())
    with (directory / "events.jsonl").open("ab") as file:
        file.write(damage)
    with Journal(directory) as journal:
        journal.append(ENDED.to_json())
    stored = StoredJournal(directory)
    assert [event for _, event in read_events(stored)] == [STARTED, STEP, ENDED]
    assert (summary(stored).state, summary(stored).steps) == ("finished", 1)
    assert load_record(stored).steps[0].output == "1\n"
    assert load_past(stored).finished == ENDED
    assert run_lineage(stored)[0].startswith("run-1: -> x [finished after 1 steps")


def reversed_keys(event: Event) -> dict[str, Any]:
    return dict(reversed(event.to_json().items()))


@pytest.mark.parametrize("order", [Event.to_json, reversed_keys])
def test_the_order_of_keys_means_nothing(
    tmp_path: Path, order: Callable[[Event], dict[str, Any]]
) -> None:
    with Journal(tmp_path / "run-1") as journal:
        for event in (STARTED, STEP, ENDED):
            journal.append(order(event))
    assert summary(StoredJournal(tmp_path / "run-1")).state == "finished"


def test_long_texts_are_read_whole_and_shortened_where_only_a_summary_is_wanted(
    tmp_path: Path,
) -> None:
    long = events.CellOutput(1, "é" * 20_000)
    with Journal(tmp_path / "run-1") as journal:
        journal.append(long.to_json())
    stored = StoredJournal(tmp_path / "run-1")
    assert [event for _, event in read_events(stored)] == [long]
    ((_, short),) = read_events(stored, events.CellOutput, whole=False)
    assert short == events.CellOutput(1, "é" * 200)
