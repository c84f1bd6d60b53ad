"""Events that the engine emits. Annotations are evaluated: journals are read by them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, cast

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
        return {"event": self.kind(), **_values(self)}


def _values(value: Any) -> Any:
    """A value as `asdict` gives it, without the defaults of later fields."""
    if is_dataclass(value):
        return {
            each.name: _values(here)
            for each in fields(value)
            if (here := getattr(value, each.name)) != each.default or "later" not in each.metadata
        }
    if isinstance(value, list):
        return [_values(each) for each in cast("list[Any]", value)]
    if isinstance(value, tuple):
        return tuple(_values(each) for each in cast("tuple[Any, ...]", value))
    if isinstance(value, Mapping):
        return {name: _values(each) for name, each in cast("Mapping[str, Any]", value).items()}
    return value


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
