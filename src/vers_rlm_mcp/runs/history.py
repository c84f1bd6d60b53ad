"""The runs on record: what became of each, and how long what they left is kept."""

from __future__ import annotations

import json
import logging
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import anyio
from anyio import to_thread

from vers_rlm_mcp.errors import MachineError, UsageError

from .record import EVENTS, is_open

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from vers_rlm_mcp.machines import CommitRecord, Fleet

    from .record import Records

logger = logging.getLogger(__name__)

CHECKPOINTED_RUNS = 10
"""Runs whose checkpoints are kept, the latest: each holds what its run has written."""

PRUNE_SECONDS = 10.0
"""What deleting the checkpoints of older runs may take; the next run goes on with it."""

State = Literal["running", "finished", "extracted", "partial", "failed", "cancelled", "broken off"]
"""``broken off``: it has no end, and no process has it open."""

TOLD = (b"run_started", b"run_resumed", b"run_finished", b"checkpoint_made", b"step_finished")
_KIND = re.compile(rb'\{"at": [0-9.]+, "event": "(\w+)"')


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run on record, in a few words."""

    id: str
    state: State
    started_at: float
    """Seconds since the epoch."""
    signature: str
    steps: int
    checkpoints: tuple[int, ...]
    """The steps at whose end there is one."""
    reason: str
    """Why it ended; empty while it has not."""
    tokens: int | None
    """None when it has not ended; so for `usd`, and when that is not known."""
    usd: float | None


def summaries(records: Records) -> Sequence[RunSummary]:
    """Every run on record, the one written last at the end."""
    return [summary(directory) for directory in records.all()]


def summary(directory: Path) -> RunSummary:
    """The run that is recorded in a directory."""
    at, started, ended = 0.0, dict[str, Any](), dict[str, Any]()
    steps, checkpoints = 0, set[int]()
    for event in _told(directory):
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
    usage = ended.get("usage", {})
    return RunSummary(
        directory.name,
        ended.get("status") or ("running" if is_open(directory) else "broken off"),
        at or (directory / EVENTS).stat().st_mtime,
        started.get("signature", ""),
        ended.get("steps", steps),
        tuple(sorted(checkpoints)),
        ended.get("reason", ""),
        sum(v for k, v in usage.items() if k != "usd") if ended else None,
        usage.get("usd"),
    )


async def prune_checkpoints(fleet: Fleet, records: Records) -> None:
    """Delete the checkpoints of all but the latest runs; those that are under way keep theirs."""
    by_run: dict[str | None, list[CommitRecord]] = {}
    for commit in fleet.checkpoints():
        by_run[commit.run] = [*by_run.pop(commit.run, ()), commit]  # the latest at the end
    old = list(by_run)[:-CHECKPOINTED_RUNS]
    if old:
        under_way = {directory.name for directory in records.all() if is_open(directory)}
        with anyio.move_on_after(PRUNE_SECONDS):
            for run in old:
                if run not in under_way:
                    await _delete(fleet, by_run[run])


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
