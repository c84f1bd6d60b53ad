"""The one stream of events of a run: progress, trajectory and journal are made from it.

The engine emits what it decides (`Feedback`, `StepFinished`); the driver emits what happens in the
world. Events hold no time of day: whoever records them adds it.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pydantic import JsonValue

    from vers_rlm_mcp.messages import Usage


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
    kept: bool = False
