"""The record of a run: its journal, read to resume or replay it."""

from __future__ import annotations

from collections import defaultdict, deque
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vers_rlm_mcp import rlm
from vers_rlm_mcp.errors import UsageError
from vers_rlm_mcp.values import CellResult, Completion, Usage

from .declarations import repl_functions
from .events import (
    CellFinished,
    CellStarted,
    CheckpointMade,
    ChildStarted,
    FilesChecked,
    InChild,
    ModelReplied,
    RunFinished,
    RunResumed,
    RunStarted,
    SubCallFinished,
    Verified,
)
from .exchange import Exchange
from .history import available, read_events, up_to

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from pydantic import JsonValue

    from vers_rlm_mcp.store import StoredJournal


@dataclass(frozen=True, slots=True)
class Ran:
    """A cell and how it ended."""

    code: str
    result: CellResult


class Past:
    """A run as its journal tells it.

    Models' replies are kept by the fingerprint of their request, each to be taken once, in the
    order in which they came: so none is paid for twice when the run is performed again. Where the
    journal holds only a fingerprint of how a request was worded, its `Exchange` is found out here.
    """

    def __init__(self, run_id: str = "", events: Iterable[rlm.Event] = ()) -> None:
        self.run_id = run_id
        self.started: RunStarted | None = None
        self.finished: RunFinished | None = None
        """The end of the last attempt."""
        self.model = self.sub_model = ""
        self.checkpoints: dict[int, CheckpointMade] = {}
        self.said: dict[tuple[int, str], Completion] = {}
        """Replies to the run's own conversation, by step and purpose."""
        self.usage = Usage()
        """The cost of all replies together."""
        self._settled = Usage()
        """The part of `usage` for replies that led to where the run stands."""
        self._settled_at: dict[int, Usage] = {}
        """The same at each checkpoint."""
        self._replies: list[tuple[int, rlm.Reply]] = []
        self._exchanges: defaultdict[str, Exchange] = defaultdict(Exchange)
        """By the path of the conversation."""
        self._reached = 0
        self._code: dict[tuple[str, int], str] = {}
        self._cells: dict[tuple[str, int], Ran] = {}
        self._verdicts: dict[tuple[str, int], rlm.Verdict] = {}
        self._paid: defaultdict[str, deque[Completion]] = defaultdict(deque)
        for event in events:
            if isinstance(event, InChild):
                self._record(event.event, event.child)
            else:
                self._record(event, "")

    @property
    def task(self) -> rlm.Task:
        """The run's task. Raises `UsageError` if the journal does not hold it."""
        try:
            return rlm.Task.from_json(self.started.task if self.started else {}, repl_functions())
        except (KeyError, TypeError, UsageError) as error:
            raise UsageError(
                f"The journal of {self.run_id} does not tell what the run was about ({error!r}): "
                "it ended before it began, or another version wrote it. Start it again."
            ) from None

    @property
    def inputs(self) -> Mapping[str, JsonValue]:
        """The inputs to begin with if there is no checkpoint. Raises `UsageError`."""
        inputs = self.started.inputs if self.started else None
        if inputs is None or self.options.get("machine_id"):
            raise UsageError(
                f"{self.run_id} has no checkpoint left to resume from, and cannot start again, "
                "since its inputs are large, come from files, or are a machine of yours. Start "
                "the task again; VERS_RLM_CHECKPOINTS says when runs make checkpoints."
            )
        return inputs

    @property
    def options(self) -> Mapping[str, Any]:
        """The part of the request that the task does not hold."""
        return self.started.options if self.started else {}

    def checkpoint(self, step: int, existing: Collection[str] | None = None) -> CheckpointMade:
        """The checkpoint at the end of a step. For `existing` see `available`.

        Raises:
            UsageError: There is none, or it was deleted.
        """
        left = available(self.checkpoints, existing)
        if step in left:
            return left[step]
        there = ", ".join(map(str, sorted(left))) or "none (VERS_RLM_CHECKPOINTS)"
        if step in self.checkpoints:
            raise UsageError(
                f"The checkpoint at step {step} has been deleted, and with it the way to resume "
                f"{self.run_id} from there; its record stays. Checkpoints that are left: {there}."
            )
        raise UsageError(f"{self.run_id} has no checkpoint at step {step}, only at: {there}.")

    def replies(self, step: int) -> Sequence[rlm.Reply]:
        """The replies to the run's own engine until the end of a step.

        Each reply of the model says what was run of it: another version may have read it otherwise.
        """
        replies = [(at, reply) for at, reply in self._replies if at <= step]
        ran = [isinstance(reply, CellResult) for _, reply in replies[1:]] + [False]
        return [
            replace(reply, was_run=self._code.get(("", at), "") if is_run else "")
            if isinstance(reply, Completion)
            else reply
            for (at, reply), is_run in zip(replies, ran, strict=False)
        ]

    def ahead(self, step: int | None) -> Mapping[str, float]:
        """Usage since a checkpoint (or the start). It is replayed and must not be counted twice."""
        settled = Usage() if step is None else self._settled_at[step]
        return {
            "tokens": self.usage.tokens - settled.tokens,
            "usd": (self.usage.usd or 0) - (settled.usd or 0),
        }

    def take(self, *requests: str) -> Completion | None:
        """The next reply to a request of one of these fingerprints that was not taken yet."""
        known = next(filter(None, map(self._paid.get, requests)), None)
        return known.popleft() if known else None

    def cell(self, path: str, step: int, code: str) -> CellResult | None:
        """How the same cell of the same conversation ended."""
        ran = self._cells.get((path, step))
        return ran.result if ran and ran.code == code else None

    def verdict(self, path: str, step: int) -> rlm.Verdict | None:
        """The last verdict of the same conversation's check in this step."""
        return self._verdicts.get((path, step))

    def _record(self, event: rlm.Event, path: str) -> None:  # noqa: C901 - one case an event
        match event:
            case ModelReplied():
                self._model_replied(event, path)
            # One with an error and a request has a reply, which is no answer but was paid for.
            case SubCallFinished() if event.error is None or event.request:
                self._count(event, _completion(event), event.request)
            case CellStarted():
                self._code[path, event.step] = event.code
            case CellFinished():
                self._cell_finished(event, path)
            case FilesChecked():
                self._reply(rlm.Verdict(event.accepted, event.output), path)
            case Verified():
                self._verified(event, path)
            case RunStarted():
                self.started, self.model, self.sub_model = event, event.model, event.sub_model
                self._begin_exchange()
            case RunResumed():
                self._truncate_after(event.step)
                self.model, self.sub_model = event.model, event.sub_model
            case ChildStarted():
                self._exchanges[event.child] = Exchange.of_child(event.child, event.about)
            case RunFinished():
                self.finished = event
            case CheckpointMade():
                self.checkpoints[event.step] = event
                self._settled_at[event.step] = self._settled
            case _:
                pass  # nothing depends on it when the run is performed again

    def _verified(self, event: Verified, path: str) -> None:
        verdict = rlm.Verdict(event.accepted, event.output)
        self._verdicts[path, event.step] = verdict
        self._reply(verdict, path)

    def _truncate_after(self, step: int) -> None:
        self.finished = None
        self._reached = step
        self._settled = self._settled_at.get(step, Usage())
        self._replies = [(at, reply) for at, reply in self._replies if at <= step]
        self.said = {place: reply for place, reply in self.said.items() if _order(*place) <= step}
        self.checkpoints = up_to(step, self.checkpoints)
        self._begin_exchange()

    def _begin_exchange(self) -> None:
        with suppress(UsageError):  # raised again by those that want the task
            self._exchanges[""] = exchange = Exchange.of_task(self.task)
            for _, reply in self._replies:
                exchange.add(reply)

    def _model_replied(self, event: ModelReplied, path: str) -> None:
        completion = _completion(event)
        request = event.exchange or self._exchanges[path].fingerprint(self.model)
        self._count(event, completion, request)
        if not path:
            self._reached = _order(event.step, event.purpose)
            self.said[event.step, event.purpose] = completion
        self._reply(completion, path)

    def _count(
        self, event: ModelReplied | SubCallFinished, completion: Completion, request: str
    ) -> None:
        self._settled += completion.usage
        if not event.recorded:
            self.usage += completion.usage
            self._paid[request].append(completion)

    def _cell_finished(self, event: CellFinished, path: str) -> None:
        result = CellResult(
            event.status,
            event.output,
            error=event.error,
            final=event.final,
            seconds=event.seconds,
            notes=event.notes,
        )
        place = path, event.step
        self._cells[place] = Ran(self._code.get(place, ""), result)
        self._reply(result, path)

    def _reply(self, reply: rlm.Reply, path: str) -> None:
        self._exchanges[path].add(reply)
        if not path:
            self._replies.append((self._reached, reply))


def _completion(event: ModelReplied | SubCallFinished) -> Completion:
    return Completion(event.text, event.usage, event.stop_reason, thoughts=event.thoughts)


def _order(step: int, purpose: str) -> int:
    """The step that a reply belongs to; the extraction comes after the last one."""
    return step if purpose == "step" else step + 1


def load_past(journal: StoredJournal) -> Past:
    """Read what is on record of a run."""
    return Past(journal.run_id, (event for _, event in read_events(journal)))
