"""The events of a run: progress, trajectory and journal are made from this one stream.

The engine emits what it decides (`Feedback`, `StepFinished`); the rest happens in the world.
Annotations are evaluated: `read_event` checks journals against them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from pydantic import JsonValue, TypeAdapter, ValidationError

from vers_rlm_mcp.rlm import Event, Feedback, StepFinished
from vers_rlm_mcp.values import CellStatus, Final, StopReason, Usage

__all__ = [
    "CellFinished",
    "CellOutput",
    "CellStarted",
    "CheckpointMade",
    "ChildChosen",
    "ChildFinished",
    "ChildStarted",
    "CommitMade",
    "Diverged",
    "Event",
    "Feedback",
    "FilesChecked",
    "FilesMerged",
    "InChild",
    "MachineDeleted",
    "MachineMade",
    "MachineRecovered",
    "MachineSwitched",
    "ModelAsked",
    "ModelReplied",
    "OutputFile",
    "RunFinished",
    "RunReplayed",
    "RunResumed",
    "RunStarted",
    "StepFinished",
    "SubCallFinished",
    "SubCallStarted",
    "Verified",
]

_LATER = {"later": True}
"""Marks a field that older journals do not hold; see `Event.to_json`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Event):
    """A run begins; its machine is there already."""

    run_id: str
    signature: str
    machine_id: str
    model: str
    sub_model: str
    max_steps: int
    task: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    """For `Task.from_json`."""
    options: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    """The part of the request that the task does not hold."""
    inputs: Mapping[str, JsonValue] | None = None
    """None where they are too large, or come from files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResumed(Event):
    """A run resumes from a checkpoint; what was recorded after that step no longer counts."""

    run_id: str
    step: int
    model: str
    sub_model: str


@dataclass(frozen=True, slots=True)
class RunReplayed(Event):
    """This run replays another one, with that run's recorded replies."""

    origin: str
    """The other run."""
    live_from: int | None
    """The step from which models are asked again; None for never."""


@dataclass(frozen=True, slots=True)
class ModelAsked(Event):
    """The root model was sent a request; `purpose` is that of `CallModel`."""

    step: int
    purpose: str
    messages: int
    """How many messages the request has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReplied(Event):
    """The root model's whole reply."""

    step: int
    purpose: Literal["step", "extraction"]
    text: str
    usage: Usage
    seconds: float
    stop_reason: StopReason = "end"
    thoughts: str = field(default="", metadata=_LATER)
    request: str = ""
    """The `fingerprint` of the request, the model's name included."""
    recorded: bool = False
    """Whether the reply comes from a journal, and no model was asked."""
    exchange: str = field(default="", metadata=_LATER)
    """The same of its `Exchange`."""


@dataclass(frozen=True, slots=True)
class CellStarted(Event):
    """Code starts to run in the kernel."""

    step: int
    code: str


@dataclass(frozen=True, slots=True)
class CellOutput(Event):
    """A piece of a running cell's output."""

    step: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CellFinished(Event):
    """How a cell ended, exactly as reported to the engine."""

    step: int
    status: CellStatus
    output: str
    error: str | None
    final: Final | None
    seconds: float
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Diverged(Event):
    """A cell or check that was run again ended differently from the record."""

    step: int
    what: str
    """Which part differs, and how."""


@dataclass(frozen=True, slots=True)
class SubCallStarted(Event):
    """A sub-model was asked. `number` counts the sub-calls of the conversation, from 1."""

    step: int
    number: int
    prompt: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SubCallFinished(Event):
    """A sub-model answered, or failed with `error`."""

    step: int
    number: int
    text: str
    usage: Usage
    seconds: float
    error: str | None = None
    stop_reason: StopReason = field(default="end", metadata=_LATER)
    thoughts: str = field(default="", metadata=_LATER)
    request: str = ""
    recorded: bool = False
    """See `ModelReplied`, also for `request`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildStarted(Event):
    """A child conversation started, on a copy of the machine."""

    child: str
    """Its path in the tree: ``2.1`` is the first child of the run's second."""
    origin: Literal["branch", "query"]
    machine_id: str
    about: str
    """The plan or the task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildFinished(Event):
    """A child ended. `usage` and `seconds` include its sub-calls and its own children."""

    child: str
    status: str
    """The outcome's status; ``failed`` if there is none."""
    outputs: dict[str, JsonValue]
    reason: str
    score: float | None
    steps: int
    usage: Usage
    seconds: float


@dataclass(frozen=True, slots=True)
class ChildChosen(Event):
    """A branch won: its machine is now the current one."""

    child: str
    machine_id: str


@dataclass(frozen=True, slots=True)
class FilesMerged(Event):
    """Files that a child changed were copied back."""

    child: str
    machine_id: str
    """The machine that received them."""
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class InChild(Event):
    """An event of a child's conversation."""

    child: str
    event: Event

    def to_json(self) -> dict[str, Any]:
        """The child's event, with the child's path under ``in``."""
        return {**self.event.to_json(), "in": self.child}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified(Event):
    """The task's check ran on an answer, in a copy of the machine."""

    step: int
    command: str
    accepted: bool
    output: str
    seconds: float


@dataclass(frozen=True, slots=True)
class FilesChecked(Event):
    """Files that an answer hands over were looked for."""

    step: int
    accepted: bool
    output: str
    """What is wrong with those that cannot be handed over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFile:
    """A file that a run handed over. Its content is kept beside the journal."""

    name: str
    """A relative path, safe on every system."""
    path: str
    """Where it was in the machine."""
    size: int
    """In bytes."""


@dataclass(frozen=True, slots=True)
class MachineMade(Event):
    """A machine was made, or an existing one was taken over (``attached``)."""

    machine_id: str
    origin: Literal["created", "branched", "restored", "attached"]
    parent: str | None = None
    """The machine it was branched from or the commit it was restored from."""


@dataclass(frozen=True, slots=True)
class MachineDeleted(Event):
    """A machine was deleted or, with `error`, could not be."""

    machine_id: str
    error: str | None = None


@dataclass(frozen=True, slots=True)
class MachineSwitched(Event):
    """Another machine became the current one."""

    previous: str
    current: str


@dataclass(frozen=True, slots=True)
class CommitMade(Event):
    """A machine was snapshotted."""

    commit_id: str
    machine_id: str
    fidelity: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointMade(Event):
    """The run can resume from here: the end of a step, or of the set-up (step 0)."""

    step: int
    commit_id: str
    """The commit of the machine with the run's kernel."""
    machine_id: str
    current_commit_id: str | None
    """The commit of the current machine, if that is another one."""
    current_id: str
    messages: int
    """The length of the conversation; 0 when it was over."""
    fingerprint: str
    """The fingerprint of its `Exchange`; of its wording if the run's task has no mark. Empty when
    it was over."""
    used: Mapping[str, int | float]
    """`Budget.used` at this point."""
    children: int
    """How many conversations the run had started."""
    not_carried: tuple[str, ...]
    """Whole sentences on variables that are not in it."""
    too_large: str = ""
    """A sentence on variables that it is the first to be without, since they are too large."""
    seconds: float
    """How long it took to make."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineRecovered(Event):
    """A cell had broken the run's machine, which was restored from a checkpoint."""

    step: int
    why: str
    lost_id: str
    machine_id: str
    checkpoint: int
    """The step at whose end the checkpoint was made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFinished(Event):
    """A run ended. `usage` includes sub-calls and children."""

    run_id: str
    status: Literal["finished", "extracted", "partial", "failed", "cancelled"]
    """The outcome's status; ``cancelled`` or ``failed`` if there is no outcome."""
    outputs: dict[str, JsonValue]
    reason: str
    steps: int
    usage: Usage
    seconds: float
    machine_id: str | None = None
    """None, like the fields below, if the run was cancelled or failed."""
    kept: bool = False
    backend: str = ""
    isolation: str = ""
    fidelity: str = ""
    sub_calls: int = 0
    final_reasoning: str = ""
    verified: str | None = None
    """The command that accepted the outputs."""
    warnings: tuple[str, ...] = ()
    files: tuple[OutputFile, ...] = field(default=(), metadata=_LATER)


_CLASSES: Mapping[str, type[Event]] = {
    each.kind(): each
    for each in (
        *(Feedback, StepFinished),
        *(RunStarted, RunResumed, RunReplayed, RunFinished),
        *(ModelAsked, ModelReplied, CellStarted, CellOutput, CellFinished, Diverged),
        *(Verified, FilesChecked),
        *(SubCallStarted, SubCallFinished, ChildStarted, ChildFinished, ChildChosen, FilesMerged),
        *(MachineMade, MachineDeleted, MachineSwitched, MachineRecovered),
        *(CommitMade, CheckpointMade),
    )
}


def read_event(fields: Mapping[str, Any]) -> Event | None:
    """The event that `Event.to_json` wrote; None if the fields fit no event."""
    kind = fields.get("event")
    if not isinstance(kind, str) or kind not in _CLASSES:
        return None
    try:
        event = _adapter(_CLASSES[kind]).validate_python(fields)
    except ValidationError:
        return None
    child = fields.get("in", "")
    if not isinstance(child, str):
        return None
    return InChild(child, event) if child else event


@cache
def _adapter(kind: type[Event]) -> TypeAdapter[Event]:
    return TypeAdapter(kind)
