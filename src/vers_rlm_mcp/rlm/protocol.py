"""The requests of the engine and their replies: its only contact with the world.

    CallModel  →  Completion | ModelFailure
    RunCell    →  CellResult
    Verify     →  Verdict
    CheckFiles →  Verdict
    Emit       →  None

`Stop` may be sent in place of any reply. The engine then makes no more requests and returns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from vers_rlm_mcp.values import CellResult, Completion

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from pydantic import JsonValue

    from vers_rlm_mcp.values import Message

    from .events import Event

Purpose: TypeAlias = Literal["step", "extraction"]
"""Why the model is called: to write a step's code, or to extract the outputs at the end."""


@dataclass(frozen=True, slots=True)
class CallModel:
    """Ask the root model. Each call's messages begin with all of the previous call's."""

    step: int
    """Counts from 1. The extraction has the number of the last step."""
    messages: tuple[Message, ...]
    purpose: Purpose = "step"


@dataclass(frozen=True, slots=True)
class RunCell:
    """Run a cell in the kernel, and answer its calls while it runs."""

    step: int
    code: str
    messages: tuple[Message, ...] = ()
    """The conversation so far, this reply included. A branch begins with it."""


@dataclass(frozen=True, slots=True)
class Verify:
    """Run the task's check on outputs that fit the signature, where it can do no harm."""

    step: int
    command: str
    outputs: Mapping[str, JsonValue]


@dataclass(frozen=True, slots=True)
class CheckFiles:
    """Check that files which are to be handed over exist in the current machine."""

    step: int
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Emit:
    """Publish an event. The only reply is None."""

    event: Event


@dataclass(frozen=True, slots=True)
class ModelFailure:
    """No reply, after all the retries that make sense. `reason` says why and what to do."""

    reason: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a check."""

    accepted: bool
    output: str = ""
    """Its output, and how it ended."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Ends the run with what there is. `reason` is a whole sentence for the user."""

    reason: str
    output: str = ""
    """What the cell that was stopped had printed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One turn of the trajectory."""

    number: int
    reasoning: str
    code: str
    """Empty when the reply held none."""
    output: str
    error: str | None
    """A traceback, or the feedback that the model got."""
    seconds: float
    """How long the cell ran."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended."""

    status: Literal["finished", "extracted", "partial"]
    """By ``FINAL``; by the extraction after the last step; or before either."""
    outputs: dict[str, JsonValue]
    """By name, of the signature's types. A partial outcome holds those that fit."""
    steps: tuple[Step, ...]
    reason: str
    """A whole sentence: why it ended."""
    final_reasoning: str
    """The reasoning of the step that ended it."""
    verified: bool = False
    """Whether the task has a check and it accepted these outputs."""


Request: TypeAlias = CallModel | RunCell | Verify | CheckFiles | Emit
Reply: TypeAlias = Completion | ModelFailure | CellResult | Verdict | Stop | None
Run: TypeAlias = "Generator[Request, Reply, Outcome]"
"""Start it with ``next``; ``StopIteration.value`` is the `Outcome`."""
