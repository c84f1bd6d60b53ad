"""Recorded runs: their state, their steps, and how long they and their checkpoints are kept."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Literal

import anyio
from anyio import to_thread

from vers_rlm_mcp import rlm
from vers_rlm_mcp.errors import MachineError, UsageError
from vers_rlm_mcp.rlm import StepFinished

from .events import CheckpointMade, RunFinished, RunResumed, RunStarted, read_event
from .request import RunResult

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from vers_rlm_mcp.machines import Fleet
    from vers_rlm_mcp.store import CommitRecord, Journals, StoredJournal
    from vers_rlm_mcp.values import Usage

logger = logging.getLogger(__name__)

CHECKPOINTED_RUNS = 10
"""How many of the latest runs keep their checkpoints, which hold all that a run has written."""

RESUMABLE_RUNS = 50
"""How many older runs without outputs keep theirs."""

PRUNE_SECONDS = 10.0
"""How long deleting checkpoints of older runs may take. The next run continues with it."""

State = Literal["running", "finished", "extracted", "partial", "failed", "cancelled", "broken off"]
"""``broken off``: it has no end, and no process is writing its journal."""

TOLD = (RunStarted, RunResumed, RunFinished, CheckpointMade, StepFinished)
"""The few events that a summary is made of."""

COMPLETE = ("finished", "extracted")
"""The states of runs that have their outputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """The state of a recorded run."""

    id: str
    state: State
    started_at: float
    """In seconds since the epoch, like `updated_at`."""
    updated_at: float
    signature: str
    model: str
    """Empty if the journal does not tell."""
    steps: int
    checkpoints: tuple[int, ...]
    """The steps at whose end there is one."""
    reason: str
    """Why it ended; empty before."""
    tokens: int | None
    """None if it has not ended. `usd` is also None if it is not known."""
    usd: float | None
    can_restart: bool
    """Whether it can start again without a checkpoint: all its inputs are on record."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A recorded run with its steps."""

    summary: RunSummary
    steps: tuple[rlm.Step, ...]
    result: RunResult | None
    """None if it has not ended."""


def read_events(
    journal: StoredJournal, *kinds: type[rlm.Event], whole: bool = True
) -> Iterator[tuple[float, rlm.Event]]:
    """The events of a run, with the times at which they were recorded.

    What cannot be read as an event, because it is damaged or another version wrote it, is left out.

    Args:
        journal: Where it is recorded.
        kinds: Read only these, and none of children. Empty for all.
        whole: Read long texts whole; otherwise their beginnings, which is faster.
    """
    for at, fields in journal.lines({kind.kind() for kind in kinds}, whole=whole):
        if (not kinds or "in" not in fields) and (event := read_event(fields)):
            yield at, event


def summaries(journals: Journals, existing: Collection[str] | None = None) -> Sequence[RunSummary]:
    """Every run on record; the one written last comes last. For `existing` see `summary`."""
    return [summary(journal, existing) for journal in journals.all()]


def summary(journal: StoredJournal, existing: Collection[str] | None = None) -> RunSummary:
    """The run that a journal records.

    Args:
        journal: Where it is recorded.
        existing: The ids of the commits that exist. Checkpoints without theirs are left out. None
            leaves none out.
    """
    return _Account(journal, read_events(journal, *TOLD, whole=False)).summary(existing)


def load_record(journal: StoredJournal, existing: Collection[str] | None = None) -> RunRecord:
    """The run that a journal records, with its steps; their texts are whole."""
    account = _Account(journal, read_events(journal, *TOLD))
    summary = account.summary(existing)
    ended = account.ended if summary.state != "running" else None
    result = RunResult.of(ended, account.steps) if ended else None
    return RunRecord(summary, tuple(account.steps), result)


class _Account:
    """What the events of a run add up to.

    Outputs that a run has ended with stay its result, unless an attempt to resume it ends with as
    many: it may also fail, be cancelled or break off.
    """

    def __init__(self, journal: StoredJournal, events: Iterable[tuple[float, rlm.Event]]) -> None:
        self.ended: RunFinished | None = None
        self.steps: list[rlm.Step] = []
        self._journal = journal
        self._started_at: float | None = None
        self._started: RunStarted | None = None
        self._checkpoints: dict[int, CheckpointMade] = {}
        self._best: tuple[RunFinished, list[rlm.Step]] | None = None
        """The end and the steps of the last attempt that ended with outputs."""
        for at, event in events:
            self._started_at = self._started_at or at
            self._add(event)
        self._is_running = self.ended is None and journal.is_open()
        if self.ended is None and not self._is_running and self._best:
            self._return_to_best("An attempt to resume the run broke off.")

    def summary(self, existing: Collection[str] | None) -> RunSummary:
        """The state of the run. For `existing` see the function of this name."""
        started, ended = self._started, self.ended
        updated_at = self._journal.updated_at
        return RunSummary(
            id=self._journal.run_id,
            state="running" if self._is_running else ended.status if ended else "broken off",
            started_at=self._started_at or updated_at,
            updated_at=updated_at,
            signature=started.signature if started else "",
            model=started.model if started else "",
            # A run that was cancelled or failed ends without counting its steps.
            steps=max(ended.steps if ended else 0, self.steps[-1].number if self.steps else 0),
            checkpoints=tuple(sorted(available(self._checkpoints, existing))),
            reason=ended.reason if ended else "",
            tokens=ended.usage.tokens if ended else None,
            usd=ended.usage.usd if ended else None,
            can_restart=started is not None
            and started.inputs is not None
            and not started.options.get("machine_id"),
        )

    def _add(self, event: rlm.Event) -> None:
        match event:
            case RunStarted():
                self._started = event
            case RunFinished():
                self._finish(event)
            case StepFinished():
                self.steps.append(
                    rlm.Step(
                        number=event.step,
                        reasoning=event.reasoning,
                        code=event.code,
                        output=event.output,
                        error=event.error,
                        seconds=event.seconds,
                    )
                )
            case CheckpointMade():
                self._checkpoints[event.step] = event
            case RunResumed():
                self.ended = None
                self.steps = [step for step in self.steps if step.number <= event.step]
                self._checkpoints = up_to(event.step, self._checkpoints)
            case _:
                pass

    def _finish(self, event: RunFinished) -> None:
        self.ended = event
        if self._best and _rank(event) < _rank(self._best[0]):
            why = f"An attempt to resume the run ended as {event.status}: {event.reason}"
            self._return_to_best(why, event.usage)
        elif event.outputs:
            self._best = event, self.steps

    def _return_to_best(self, why: str, usage: Usage | None = None) -> None:
        assert self._best
        ended, self.steps = self._best
        warnings = (*ended.warnings, why)
        self.ended = replace(ended, warnings=warnings, usage=usage or ended.usage)


def _rank(ended: RunFinished) -> int:
    """Which of two ends is the better one: complete outputs, some, or none."""
    return 2 if ended.status in COMPLETE else 1 if ended.outputs else 0


def up_to(step: int, checkpoints: Mapping[int, CheckpointMade]) -> dict[int, CheckpointMade]:
    """The checkpoints that a run which is resumed at the end of a step still has."""
    return {at: made for at, made in checkpoints.items() if at <= step}


def available(
    checkpoints: Mapping[int, CheckpointMade], existing: Collection[str] | None
) -> dict[int, CheckpointMade]:
    """The checkpoints whose commits are among the existing ones; all if those are not known."""
    return {
        step: made
        for step, made in checkpoints.items()
        if existing is None
        or {made.commit_id, made.current_commit_id or made.commit_id} <= set(existing)
    }


async def existing_checkpoints(fleet: Fleet) -> set[str]:
    """The commits of checkpoints that exist according to the ledger."""
    return {commit.id for commit in await fleet.checkpoints()}


def next_step_hint(run: RunSummary) -> str:
    """A sentence on how to resume a run without outputs, or why it cannot be resumed."""
    if run.state in COMPLETE or run.state == "running":
        return ""
    if run.checkpoints:
        return f"rlmResume resumes it from the end of step {run.checkpoints[-1]}."
    if run.can_restart:
        return "rlmResume starts it again; replies of models are not paid for twice."
    return "It cannot be resumed, since it has no checkpoint: start it again."


async def prune_checkpoints(fleet: Fleet, journals: Journals) -> None:
    """Delete the checkpoints of all but the latest runs, and of none that is under way.

    Runs without outputs keep theirs longer, since they can be resumed.
    """
    by_run: dict[str | None, list[CommitRecord]] = {}
    for commit in await fleet.checkpoints():
        by_run[commit.run] = [*by_run.pop(commit.run, ()), commit]  # the latest at the end
    candidates = list(by_run)[:-CHECKPOINTED_RUNS]
    if candidates:
        known = {journal.run_id: journal for journal in journals.all()}
        needed = [run for run in candidates if run in known and _needs(known[run])]
        kept = set(needed[-RESUMABLE_RUNS:])
        with anyio.move_on_after(PRUNE_SECONDS):
            for run in candidates:
                if run not in kept:
                    await _delete(fleet, by_run[run])


def _needs(journal: StoredJournal) -> bool:
    """Whether a run still needs its checkpoints: it is under way, or has no outputs."""
    return journal.is_open() or summary(journal).state not in COMPLETE


async def prune(fleet: Fleet, journals: Journals, keep: int) -> Sequence[str]:
    """Delete all but the latest runs and their checkpoints. Returns the ids.

    Raises:
        UsageError: `keep` is negative.
    """
    if keep < 0:
        raise UsageError(f"{keep} runs cannot be kept; 0 keeps none.")
    recorded = journals.all()
    older = recorded[: max(0, len(recorded) - keep)]
    old = [journal for journal in older if not journal.is_open()]
    return await delete_runs(fleet, old)


async def delete_runs(fleet: Fleet, journals: Sequence[StoredJournal]) -> Sequence[str]:
    """Delete recorded runs and their checkpoints. Returns the ids.

    Raises:
        UsageError: One of them is under way; nothing was deleted.
    """
    for journal in journals:
        if journal.is_open():
            raise UsageError(f"{journal.run_id} is under way; cancel it first.")
    names = {journal.run_id for journal in journals}
    await _delete(fleet, [each for each in await fleet.checkpoints() if each.run in names])
    deleted: list[str] = []
    for journal in journals:
        try:
            await to_thread.run_sync(journal.delete)
            deleted.append(journal.run_id)
        except OSError as error:
            logger.warning("The record of %s cannot be deleted: %s", journal.run_id, error)
    return deleted


async def prune_to_size(fleet: Fleet, journals: Journals, most: int) -> None:
    """Delete the oldest runs until the others take at most `most` bytes."""
    sizes = await to_thread.run_sync(lambda: [each.size for each in reversed(journals.all())])
    kept = sum(total <= most for total in accumulate(sizes))
    if kept < len(sizes):
        pruned = await prune(fleet, journals, kept)
        logger.info("Deleted the oldest runs from the record: %s", ", ".join(pruned))


async def _delete(fleet: Fleet, commits: Iterable[CommitRecord]) -> None:
    for commit in commits:
        try:
            await fleet.delete_commit(commit.id)
        except MachineError as error:
            logger.info("Commit %s is left for the next time: %s", commit.id, error)
