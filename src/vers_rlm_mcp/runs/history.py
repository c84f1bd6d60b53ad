"""The runs on record: what became of each, and how long what they left is kept."""

from __future__ import annotations

import json
import logging
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

import anyio
from anyio import to_thread

from vers_rlm_mcp import rlm
from vers_rlm_mcp.errors import MachineError, UsageError

from .record import EVENTS, expanded, is_open
from .request import RunResult

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from vers_rlm_mcp.machines import Fleet
    from vers_rlm_mcp.store import CommitRecord

    from .record import Records

logger = logging.getLogger(__name__)

CHECKPOINTED_RUNS = 10
"""Runs whose checkpoints are kept, the latest: each holds what its run has written."""

RESUMABLE_RUNS = 50
"""The same for older runs that have no outputs yet."""

PRUNE_SECONDS = 10.0
"""What deleting the checkpoints of older runs may take; the next run goes on with it."""

State = Literal["running", "finished", "extracted", "partial", "failed", "cancelled", "broken off"]
"""``broken off``: it has no end, and no process has it open."""

TOLD = (b"run_started", b"run_resumed", b"run_finished", b"checkpoint_made", b"step_finished")
STEP = ("reasoning", "code", "output", "error", "seconds")
"""What a step's event and the step have in common."""

COMPLETE = ("finished", "extracted")
"""The states of runs that have their outputs."""

_KIND = re.compile(rb'\{"at": [0-9.]+, "event": "(\w+)"')


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run on record, in a few words."""

    id: str
    state: State
    started_at: float
    """Seconds since the epoch; so for `updated_at`."""
    updated_at: float
    signature: str
    steps: int
    checkpoints: tuple[int, ...]
    """The steps at whose end there is one."""
    reason: str
    """Why it ended; empty while it has not."""
    tokens: int | None
    """None when it has not ended; so for `usd`, and when that is not known."""
    usd: float | None
    begins_anew: bool
    """Whether it could begin again without a checkpoint: all that it was given is on record."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run on record, with its steps."""

    summary: RunSummary
    steps: tuple[rlm.Step, ...]
    result: RunResult | None
    """None when it has not ended."""


def summaries(records: Records) -> Sequence[RunSummary]:
    """Every run on record, the one written last at the end."""
    return [summary(directory) for directory in records.all()]


def summary(directory: Path) -> RunSummary:
    """The run that is recorded in a directory."""
    return _summed_up(directory, _told(directory))


def _summed_up(directory: Path, events: Iterable[dict[str, Any]]) -> RunSummary:
    at, started, ended = 0.0, dict[str, Any](), dict[str, Any]()
    steps, checkpoints = 0, set[int]()
    for event in events:
        at = at or event["at"]
        match event["event"]:
            case "run_started":
                started = event
            case "run_finished":
                ended = event
            case "step_finished":
                steps = event["step"]
            case "checkpoint_made":
                checkpoints.add(event["step"])
            case _:
                steps, ended = event["step"], {}
                checkpoints = {step for step in checkpoints if step <= steps}
    updated_at = (directory / EVENTS).stat().st_mtime
    usage = ended.get("usage", {})
    return RunSummary(
        directory.name,
        ended.get("status") or ("running" if is_open(directory) else "broken off"),
        at or updated_at,
        updated_at,
        started.get("signature", ""),
        ended.get("steps", steps),
        tuple(sorted(checkpoints)),
        ended.get("reason", ""),
        sum(v for k, v in usage.items() if k != "usd") if ended else None,
        usage.get("usd"),
        started.get("inputs") is not None and not started["options"].get("machine_id"),
    )


def recorded(directory: Path) -> RunRecord:
    """The run that is recorded in a directory, with its steps; their texts are whole."""
    steps: list[rlm.Step] = []
    ended: dict[str, Any] | None = None
    events = [expanded(event, directory) for event in _told(directory)]
    for event in events:
        match event["event"]:
            case "step_finished":
                values = {name: event[name] for name in STEP}
                steps.append(rlm.Step(event["step"], **values))
            case "run_resumed":
                steps, ended = [step for step in steps if step.number <= event["step"]], None
            case "run_finished":
                ended = event
            case _:
                pass
    result = RunResult.of(ended, steps) if ended else None
    return RunRecord(_summed_up(directory, events), tuple(steps), result)


def way_on(fleet: Fleet, run: RunSummary) -> str:
    """How to go on with a run that has not got to its end, or why that cannot be; a sentence."""
    if run.state in COMPLETE or run.state == "running":
        return ""
    there = {commit.run for commit in fleet.checkpoints()}
    if run.checkpoints and run.id in there:
        return f"rlmResume goes on with it from the end of step {run.checkpoints[-1]}."
    if run.begins_anew and not run.checkpoints:
        return "rlmResume begins it anew; what models replied is not paid for twice."
    why = "its checkpoints were deleted" if run.checkpoints else "it made no checkpoint"
    return f"It cannot be gone on with, since {why}: start it anew."


async def prune_checkpoints(fleet: Fleet, records: Records) -> None:
    """Delete the checkpoints of all but the latest runs; those that are under way keep theirs.

    Runs that can be gone on with keep theirs for longer than those that have their outputs.
    """
    by_run: dict[str | None, list[CommitRecord]] = {}
    for commit in fleet.checkpoints():
        by_run[commit.run] = [*by_run.pop(commit.run, ()), commit]  # the latest at the end
    candidates = list(by_run)[:-CHECKPOINTED_RUNS]
    if candidates:
        directories = {directory.name: directory for directory in records.all()}
        needed = [run for run in candidates if run in directories and _needs(directories[run])]
        kept = set(needed[-RESUMABLE_RUNS:])
        with anyio.move_on_after(PRUNE_SECONDS):
            for run in candidates:
                if run not in kept:
                    await _delete(fleet, by_run[run])


def _needs(directory: Path) -> bool:
    """Whether a run is under way or has no outputs yet, so that it needs its checkpoints."""
    return is_open(directory) or summary(directory).state not in COMPLETE


async def prune(fleet: Fleet, records: Records, keep: int) -> Sequence[str]:
    """Delete all but the latest runs from the record, and their checkpoints; their ids.

    Raises:
        UsageError: `keep` is negative.
    """
    if keep < 0:
        raise UsageError(f"{keep} runs cannot be kept; 0 keeps none.")
    directories = records.all()
    older = directories[: max(0, len(directories) - keep)]
    old = [directory for directory in older if not is_open(directory)]
    names = {directory.name for directory in old}
    await _delete(fleet, [commit for commit in fleet.checkpoints() if commit.run in names])
    for directory in old:
        await to_thread.run_sync(shutil.rmtree, directory)
    return [directory.name for directory in old]


async def prune_to_size(fleet: Fleet, records: Records, most: int) -> None:
    """Delete the oldest runs from the record until the others take no more than `most` bytes."""
    sizes = await to_thread.run_sync(lambda: [_size(path) for path in reversed(records.all())])
    kept = sum(total <= most for total in accumulate(sizes))
    if kept < len(sizes):
        pruned = await prune(fleet, records, kept)
        logger.info("Deleted the oldest runs from the record: %s", ", ".join(pruned))


def _size(directory: Path) -> int:
    size = 0
    for path in directory.rglob("*"):
        with suppress(FileNotFoundError):  # another process prunes, too
            size += path.stat().st_size
    return size


async def _delete(fleet: Fleet, commits: Iterable[CommitRecord]) -> None:
    for commit in commits:
        try:
            await fleet.delete_commit(commit.id)
        except MachineError as error:
            logger.info("Commit %s is left for the next time: %s", commit.id, error)


def _told(directory: Path) -> Iterator[dict[str, Any]]:
    """The few events that a summary is made of, without a look at the others."""
    with (directory / EVENTS).open("rb") as file:
        for line in file:
            if (kind := _KIND.match(line)) and kind[1] in TOLD:
                with suppress(ValueError):  # a crash cut it short
                    event = json.loads(line)
                    if "in" not in event:
                        yield event
