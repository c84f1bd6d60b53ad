"""What is on record of a run: its journal, read back to go on with it or to replay it."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from vers_rlm_mcp import rlm
from vers_rlm_mcp.errors import UsageError
from vers_rlm_mcp.values import CellResult, Completion, Final, Usage

from .declarations import repl_functions
from .record import read_events

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from pydantic import JsonValue

Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ran:
    """A cell and how it ended."""

    code: str
    reply: CellResult


class Past:
    """A run as its journal tells of it. An empty one is that of a run that never was.

    Replies of models are kept by the fingerprint of what was asked, each to be taken once: whoever
    performs the run again gets them in the order in which they came, and none is paid for twice.
    """

    def __init__(self, run_id: str = "", events: Iterable[Fields] = ()) -> None:
        self.run_id = run_id
        self.started: Fields | None = None
        """The event ``run_started``."""
        self.finished: Fields | None = None
        """The event ``run_finished`` of the last attempt."""
        self.model = self.sub_model = ""
        self.checkpoints: dict[int, rlm.CheckpointMade] = {}
        self.said: dict[tuple[int, str], Completion] = {}
        """Replies to the run's own conversation, by step and purpose."""
        self.usage = Usage()
        """What all replies together have cost."""
        self._settled = Usage()
        """Of these, what came, or was used again, on the way that the run went last."""
        self._settled_at: dict[int, Usage] = {}
        """The same at each checkpoint."""
        self._replies: list[tuple[int, rlm.Reply]] = []
        self._reached = 0
        self._code: dict[tuple[str, int], str] = {}
        self._cells: dict[tuple[str, int], Ran] = {}
        self._verdicts: dict[tuple[str, int], rlm.Verdict] = {}
        self._paid: defaultdict[str, deque[Completion]] = defaultdict(deque)
        for event in events:
            self._read(event)

    @property
    def task(self) -> rlm.Task:
        """The run's task. Raises `UsageError` when the journal does not tell it."""
        try:
            return rlm.Task.from_json((self.started or {})["task"], repl_functions())
        except (KeyError, TypeError, UsageError) as error:
            raise UsageError(
                f"The journal of {self.run_id} does not tell what the run was about ({error!r}): "
                "it ended before it began, or another version wrote it. Start it anew."
            ) from None

    @property
    def inputs(self) -> dict[str, JsonValue]:
        """The inputs to begin with where there is no checkpoint. Raises `UsageError`."""
        inputs = (self.started or {}).get("inputs")
        if inputs is None or self.options.get("machine_id"):
            raise UsageError(
                f"{self.run_id} has no checkpoint to go on from, and cannot begin anew by itself, "
                "since its inputs are large, come from files, or are a machine of yours. Start "
                "the task again; VERS_RLM_CHECKPOINTS says when runs make checkpoints."
            )
        return inputs

    @property
    def options(self) -> Fields:
        """What else was asked of the run."""
        return (self.started or {}).get("options") or {}

    def checkpoint(self, step: int) -> rlm.CheckpointMade:
        """The checkpoint at the end of a step. Raises `UsageError`."""
        if step not in self.checkpoints:
            there = ", ".join(map(str, sorted(self.checkpoints))) or "none (VERS_RLM_CHECKPOINTS)"
            raise UsageError(f"{self.run_id} has no checkpoint at step {step}, only at: {there}.")
        return self.checkpoints[step]

    def replies(self, step: int) -> Sequence[rlm.Reply]:
        """What the run's own engine was told until the end of a step."""
        return [reply for at, reply in self._replies if at <= step]

    def ahead(self, step: int | None) -> Mapping[str, float]:
        """Of `usage`, what came after a checkpoint, or after the beginning: it is used again."""
        settled = Usage() if step is None else self._settled_at[step]
        return {
            "tokens": self.usage.tokens - settled.tokens,
            "usd": (self.usage.usd or 0) - (settled.usd or 0),
        }

    def take(self, request: str) -> Completion | None:
        """The next reply to a request of this fingerprint that was not taken yet."""
        known = self._paid.get(request)
        return known.popleft() if known else None

    def cell(self, path: str, step: int, code: str) -> CellResult | None:
        """How the same cell of the same conversation ended."""
        ran = self._cells.get((path, step))
        return ran.reply if ran and ran.code == code else None

    def verdict(self, path: str, step: int) -> rlm.Verdict | None:
        """What the check of the same conversation said last in this step."""
        return self._verdicts.get((path, step))

    def _read(self, event: Fields) -> None:
        path = event.get("in", "")
        match event.get("event"):
            case "model_replied":
                self._model_replied(event, path)
            case "sub_call_finished":
                if event["error"] is None:
                    self._count(event, Completion(event["text"], Usage(**event["usage"])))
            case "cell_started":
                self._code[path, event["step"]] = event["code"]
            case "cell_finished":
                self._cell_finished(event, path)
            case "verified":
                self._verified(event, path)
            case _:
                self._read_of_run(event)

    def _read_of_run(self, event: Fields) -> None:
        match event.get("event"):
            case "run_started":
                self.started = event
                self.model, self.sub_model = event["model"], event["sub_model"]
            case "run_resumed":
                self._forget_what_came_after(event["step"])
                self.model, self.sub_model = event["model"], event["sub_model"]
            case "run_finished":
                self.finished = event
            case "checkpoint_made":
                values = {field.name: event[field.name] for field in fields(rlm.CheckpointMade)}
                values["not_carried"] = tuple(values["not_carried"])
                self.checkpoints[event["step"]] = rlm.CheckpointMade(**values)
                self._settled_at[event["step"]] = self._settled
            case _:
                pass  # it is for people only

    def _forget_what_came_after(self, step: int) -> None:
        self.finished = None
        self._reached = step
        self._settled = self._settled_at.get(step, Usage())
        self._replies = [(at, reply) for at, reply in self._replies if at <= step]
        self.said = {place: reply for place, reply in self.said.items() if _order(*place) <= step}
        self.checkpoints = {at: made for at, made in self.checkpoints.items() if at <= step}

    def _model_replied(self, event: Fields, path: str) -> None:
        stop: Any = event.get("stop_reason", "end")
        completion = Completion(event["text"], Usage(**event["usage"]), stop)
        self._count(event, completion)
        if not path:
            step, purpose = event["step"], event["purpose"]
            self._reached = _order(step, purpose)
            self.said[step, purpose] = completion
            self._replies.append((self._reached, completion))

    def _count(self, event: Fields, completion: Completion) -> None:
        self._settled += completion.usage
        if not event.get("recorded"):
            self.usage += completion.usage
            self._paid[event.get("request", "")].append(completion)

    def _cell_finished(self, event: Fields, path: str) -> None:
        final = event["final"] and Final(**event["final"])
        reply = CellResult(
            event["status"],
            event["output"],
            error=event["error"],
            final=final,
            seconds=event["seconds"],
            notes=tuple(event["notes"]),
        )
        place = path, event["step"]
        self._cells[place] = Ran(self._code.get(place, ""), reply)
        if not path:
            self._replies.append((self._reached, reply))

    def _verified(self, event: Fields, path: str) -> None:
        verdict = rlm.Verdict(event["accepted"], event["output"])
        self._verdicts[path, event["step"]] = verdict
        if not path:
            self._replies.append((self._reached, verdict))


def _order(step: int, purpose: str) -> int:
    """The step to which a reply belongs; the extraction comes after the last one."""
    return step if purpose == "step" else step + 1


def recall(directory: Path) -> Past:
    """What is on record of a run."""
    return Past(directory.name, read_events(directory))
