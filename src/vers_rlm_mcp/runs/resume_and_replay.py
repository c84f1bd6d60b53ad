"""Resumes and replays recorded runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vers_rlm_mcp import rlm
from vers_rlm_mcp.errors import UsageError
from vers_rlm_mcp.store import Journals, in_thread

from . import events
from .context import RunContext
from .conversation import feed
from .driver import Beginning, BeginningAt, Driver
from .exchange import Exchange
from .history import COMPLETE, available
from .past import Past, load_past
from .reply_source import ReplayedReplies, Replies
from .request import RunRequest, RunResult, check_prices, limits

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from vers_rlm_mcp.machines import Fleet
    from vers_rlm_mcp.models import Model
    from vers_rlm_mcp.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """Changes to a run that is resumed or replayed. None leaves a part as it was."""

    instructions: str | None = None
    max_iterations: int | None = None
    max_seconds: float | None = None
    max_tokens: int | None = None
    max_usd: float | None = None

    def apply(self, past: Past) -> tuple[rlm.Task, RunRequest]:
        """The task and the request of the run, changed. Raises `UsageError`."""
        task = past.task
        task = replace(
            task,
            instructions=task.instructions if self.instructions is None else self.instructions,
            max_iterations=self.max_iterations or task.max_iterations,
        )
        limits = {name: getattr(self, name) for name in ("max_seconds", "max_tokens", "max_usd")}
        given = {name: limit for name, limit in limits.items() if limit is not None}
        return task, RunRequest.of(task, {**past.options, **given})


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """The result of a replay."""

    origin: str
    result: RunResult
    differences: Sequence[events.Diverged]
    """Where cells or checks ended differently."""
    same_outputs: bool


async def resume(
    run_id: str,
    *,
    step: int | None = None,
    changes: Changes | None = None,
    fleet: Fleet,
    model: Model,
    sub_model: Model,
    settings: Settings,
    on_event: Callable[[rlm.Event], None] = lambda _: None,
) -> RunResult:
    """Resume a run from the end of a step; by default from its last checkpoint.

    What was recorded after that step no longer counts, but its replies answer identical requests,
    so that nothing is paid for twice. The run gets a new machine.

    Raises:
        UsageError: It cannot be resumed there; the message says why and where it can.
        MachineError: Its machine could not be restored.
        ModelUnavailable: The model cannot be used.
    """
    stored = Journals(settings.state_dir, fleet.principal).of(run_id)
    with await in_thread(stored.append) as journal:
        past = await in_thread(load_past, stored)
        existing = {commit.id for commit in await fleet.commits()}
        left = available(past.checkpoints, existing)
        if step is None and past.finished and past.finished.status in COMPLETE:
            raise _has_ended(run_id, left)
        task, request = (changes or Changes()).apply(past)
        check_prices(limits(request, settings), (model, sub_model))
        at = max(left, default=0) if step is None else step
        if step is None:
            checkpoint = left.get(at)
        else:
            checkpoint = past.checkpoint(step, existing) if step or past.checkpoints else None
        replies = past.replies(at)
        beginning = _beginning(past, task, checkpoint)
        if checkpoint:
            _check_replies(run_id, task, replies, None if task != past.task else checkpoint)
        context = RunContext(
            request=request,
            fleet=fleet,
            settings=settings,
            replies=Replies(model, sub_model, past),
            journal=journal,
            on_event=on_event,
        )
        resumed = events.RunResumed(
            run_id=run_id, step=at, model=model.name, sub_model=sub_model.name
        )
        driver = Driver(context, resumed=resumed, last=checkpoint)
        return await driver.perform(beginning, replies)


async def replay(
    run_id: str,
    *,
    live_from: int | None = None,
    changes: Changes | None = None,
    fleet: Fleet,
    models: tuple[Model, Model] | None = None,
    settings: Settings,
    on_event: Callable[[rlm.Event], None] = lambda _: None,
) -> Replay:
    """Repeat a run as a new one, on a new machine with the same inputs and the recorded replies.

    No model is asked, except with `models` (a model and a sub-model): these take over after step
    `live_from`.

    Raises:
        UsageError: It cannot be replayed; the message says why.
        MachineError: No machine could be made ready.
    """
    journals = Journals(settings.state_dir, fleet.principal)
    past = await in_thread(load_past, journals.of(run_id))
    task, request = (changes or Changes()).apply(past)
    request = replace(request, machine_id=None)
    left = available(past.checkpoints, {commit.id for commit in await fleet.commits()})
    beginning = _beginning(past, task, left.get(0))
    differences: list[events.Diverged] = []

    def watch(event: rlm.Event) -> None:
        if isinstance(event, events.Diverged):
            differences.append(event)
        on_event(event)

    with journals.new() as journal:
        context = RunContext(
            request=request,
            fleet=fleet,
            settings=settings,
            replies=ReplayedReplies(past, models, (live_from or 0) + 1),
            journal=journal,
            on_event=watch,
        )
        replayed = events.RunReplayed(run_id, live_from if models else None)
        result = await Driver(context, replayed=replayed).perform(beginning)
    outputs = past.finished and past.finished.outputs
    return Replay(
        origin=run_id,
        result=result,
        differences=differences,
        same_outputs=dict(result.outputs) == outputs,
    )


def _has_ended(run_id: str, left: Collection[int]) -> UsageError:
    if left:
        steps = ", ".join(map(str, sorted(left)))
        what = f"Name the step to go on from, one of: {steps}."
    else:
        what = "It has no checkpoint left to resume from; its outputs stay on record."
    return UsageError(f"{run_id} has ended with its outputs. {what}")


def _beginning(
    past: Past, task: rlm.Task, checkpoint: events.CheckpointMade | None
) -> Beginning | BeginningAt:
    """Choose where a run begins again. Raises `UsageError` if it cannot."""
    if checkpoint:
        return BeginningAt(checkpoint, task)
    return Beginning(task.signature, past.inputs, task.mark)


def _check_replies(
    run_id: str,
    task: rlm.Task,
    replies: Sequence[rlm.Reply],
    checkpoint: events.CheckpointMade | None,
) -> None:
    """Check that the replies lead the engine to where the run stood. Raises `UsageError`."""
    try:
        asked = feed(rlm.run(task), replies)
    except StopIteration:
        return
    except TypeError as error:
        raise UsageError(f"The journal of {run_id} is damaged: {error}. Start it again.") from None
    if checkpoint is None or not checkpoint.fingerprint or not isinstance(asked, rlm.CallModel):
        return
    exchange = Exchange.of_task(task)
    for reply in replies:
        exchange.add(reply)
    # Versions without marks recorded how the conversation was worded, which does not matter here.
    same = exchange.fingerprint() == checkpoint.fingerprint or not task.mark
    if not same or len(asked.messages) != checkpoint.messages:
        raise UsageError(
            f"{run_id} was recorded by another version, or its journal is damaged: what is on "
            "record does not lead to its checkpoint. Resume it from an earlier step, or replay it."
        )
