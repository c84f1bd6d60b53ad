"""Events that the engine emits. Annotations are evaluated: journals are read by them."""

import re
from dataclasses import asdict, dataclass, fields
from typing import Any

from vers_rlm_mcp.values import Usage


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in a run. Events hold no time of day; the journal adds it."""

    @classmethod
    def kind(cls) -> str:
        """The event's name in JSON: the class name in snake_case."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()

    def to_json(self) -> dict[str, Any]:
        """The event as values that ``json.dumps`` takes, its kind under ``event``.

        A field with ``later`` in its metadata is one that older journals do not hold; its default
        is not written.
        """
        values = asdict(self)
        for each in fields(self):
            if "later" in each.metadata and values[each.name] == each.default:
                del values[each.name]
        return {"event": self.kind(), **values}


@dataclass(frozen=True, slots=True)
class Feedback(Event):
    """The engine told the model that a reply or an answer will not do, and why."""

    step: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFinished(Event):
    """A step of the trajectory is complete."""

    step: int
    max_steps: int
    reasoning: str
    code: str
    output: str
    error: str | None
    seconds: float
    usage: Usage
    """The usage of the root model's call for this step."""
    done: bool = False
    """Whether the step ended the run with its answer."""
