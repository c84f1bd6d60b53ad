"""The one stream of events of a run: progress, trajectory and journal are made from it.

The engine emits what it decides (`Feedback`, `StepFinished`); the driver emits what happens in the
world. Events hold no time of day: whoever records them adds it.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import JsonValue

    from vers_rlm_mcp.values import Usage


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in a run."""

    @classmethod
    def kind(cls) -> str:
        """The event's name in JSON: the class name in snake_case."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()

    def to_json(self) -> dict[str, Any]:
        """The event as values that ``json.dumps`` takes, its kind under ``event``."""
        return {"event": self.kind(), **asdict(self)}


@dataclass(frozen=True, slots=True)
class RunStarted(Event):
    """A run begins, in a machine that is there already."""

    run_id: str
    signature: str
    machine_id: str
    model: str
    sub_model: str
    max_steps: int
    task: Mapping[str, JsonValue] = field(default_factory=dict[str, "JsonValue"])
    """What `Task.from_json` reads."""
    options: Mapping[str, JsonValue] = field(default_factory=dict[str, "JsonValue"])
    """What else was asked of the run."""
    inputs: Mapping[str, JsonValue] | None = None
    """None where they are too large, or come from files."""


@dataclass(frozen=True, slots=True)
class RunResumed(Event):
    """A run goes on from a checkpoint; what was recorded after that step does not count."""

    run_id: str
    step: int
    model: str
    sub_model: str


@dataclass(frozen=True, slots=True)
class RunReplayed(Event):
    """This run performs another one again, with the replies that were recorded of it."""

    origin: str
    """The other run."""
    live_from: int | None
    """The step from which models are asked again; None never."""


@dataclass(frozen=True, slots=True)
class ModelAsked(Event):
    """The root model was sent a request; `purpose` is that of `CallModel`."""

    step: int
    purpose: str
    messages: int
    """How many messages the request has."""


@dataclass(frozen=True, slots=True)
class ModelReplied(Event):
    """The root model's whole reply."""

    step: int
    purpose: str
    text: str
    usage: Usage
    seconds: float
    stop_reason: str = "end"
    request: str = ""
    """The `fingerprint` of what was asked, the model's name included."""
    recorded: bool = False
    """Whether the reply was on record, so that nobody was asked."""


@dataclass(frozen=True, slots=True)
class CellStarted(Event):
    """Code begins to run in the kernel."""

    step: int
    code: str


@dataclass(frozen=True, slots=True)
class CellOutput(Event):
    """A piece of what a running cell prints."""

    step: int
    text: str


@dataclass(frozen=True, slots=True)
class CellFinished(Event):
    """How a cell ended: what the engine is told of it, word for word."""

    step: int
    status: str
    output: str
    error: str | None
    final: Mapping[str, JsonValue] | None
    """``args`` and ``kwargs`` of a call of ``FINAL``."""
    seconds: float
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Diverged(Event):
    """A cell or check that was performed again came out otherwise than it is on record."""

    step: int
    what: str
    """Which part differs, and how."""


@dataclass(frozen=True, slots=True)
class ToolCalled(Event):
    """A cell used a machine: ``exec``, ``readFile``, ``writeFile``."""

    step: int
    name: str
    detail: str
    """The command or path."""


@dataclass(frozen=True, slots=True)
class SubCallStarted(Event):
    """A sub-model was asked. `number` counts the sub-calls of the run, from 1."""

    step: int
    number: int
    prompt: str


@dataclass(frozen=True, slots=True)
class SubCallFinished(Event):
    """A sub-model answered, or failed with `error`."""

    step: int
    number: int
    text: str
    usage: Usage
    seconds: float
    error: str | None = None
    request: str = ""
    recorded: bool = False
    """As of `ModelReplied`."""


@dataclass(frozen=True, slots=True)
class ChildStarted(Event):
    """A conversation of its own began, on a copy of the machine."""

    child: str
    """Its path in the tree: ``2.1`` is the first child of the run's second."""
    origin: Literal["branch", "query"]
    machine_id: str
    about: str
    """The plan or the task."""


@dataclass(frozen=True, slots=True)
class ChildFinished(Event):
    """A child ended. `usage` and `seconds` are its own, its sub-calls and children included."""

    child: str
    status: str
    """That of the `Outcome`, or ``failed``."""
    outputs: dict[str, JsonValue]
    reason: str
    score: float | None
    steps: int
    usage: Usage
    seconds: float


@dataclass(frozen=True, slots=True)
class ChildChosen(Event):
    """A branch won: its machine is the current one now."""

    child: str
    machine_id: str


@dataclass(frozen=True, slots=True)
class FilesMerged(Event):
    """Files that a child changed were brought back."""

    child: str
    machine_id: str
    """The machine that got them."""
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class InChild(Event):
    """Something that happened in a child's conversation."""

    child: str
    event: Event

    def to_json(self) -> dict[str, Any]:
        """The child's event, with the child's path."""
        return {**self.event.to_json(), "in": self.child}


@dataclass(frozen=True, slots=True)
class Verified(Event):
    """The task's check looked at an answer, in a copy of the machine."""

    step: int
    command: str
    accepted: bool
    output: str
    seconds: float


@dataclass(frozen=True, slots=True)
class MachineMade(Event):
    """A machine came to be, or was taken over (``attached``)."""

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


@dataclass(frozen=True, slots=True)
class CheckpointMade(Event):
    """The run can go on from here: the end of a step, or of the set-up (step 0)."""

    step: int
    commit_id: str
    """Of the machine with the run's kernel."""
    machine_id: str
    current_commit_id: str | None
    """Of the current machine, where that is another one."""
    current_id: str
    messages: int
    """How long the conversation was, and its `fingerprint`; 0 and empty when it was over."""
    fingerprint: str
    used: Mapping[str, float]
    """What `Budget.used` told."""
    children: int
    """How many conversations the run had started."""
    not_carried: tuple[str, ...]
    """Whole sentences on variables that are not in it."""
    seconds: float
    """What making it took."""


@dataclass(frozen=True, slots=True)
class MachineRecovered(Event):
    """A cell had broken the run's machine, which was put back to a checkpoint."""

    step: int
    why: str
    lost_id: str
    machine_id: str
    checkpoint: int
    """The step at whose end it was made."""


@dataclass(frozen=True, slots=True)
class Feedback(Event):
    """The engine told the model that a reply or an answer will not do, and why."""

    step: int
    text: str


@dataclass(frozen=True, slots=True)
class StepFinished(Event):
    """A step of the trajectory is complete. `done`: it ended the run with its answer."""

    step: int
    max_steps: int
    reasoning: str
    code: str
    output: str
    error: str | None
    seconds: float
    usage: Usage
    """Of the root model's call for this step."""
    done: bool = False


@dataclass(frozen=True, slots=True)
class RunFinished(Event):
    """A run ended. `usage` is that of the whole tree, sub-calls included."""

    run_id: str
    status: str
    """That of the `Outcome`, or ``cancelled`` or ``failed`` when there is none."""
    outputs: dict[str, JsonValue]
    reason: str
    steps: int
    usage: Usage
    seconds: float
    machine_id: str | None = None
    """None when it came to no end of its own; so for what follows."""
    kept: bool = False
    backend: str = ""
    isolation: str = ""
    fidelity: str = ""
    sub_calls: int = 0
    final_reasoning: str = ""
    verified: str | None = None
    """The command that accepted the outputs."""
    warnings: tuple[str, ...] = ()
