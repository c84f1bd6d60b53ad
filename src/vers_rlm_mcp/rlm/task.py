"""The task of a run: all that the engine and the prompt know before step 1."""

from __future__ import annotations

import json
from dataclasses import KW_ONLY, asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from vers_rlm_mcp.errors import InputError

from .signature import Signature
from .transcript import PREVIEW_CHARS, truncate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import JsonValue

    from vers_rlm_mcp.values import Message, ReplFunction

_CONDUCT = ("mark", "repeats_told", "repeats_ended")
"""Fields of a task that say how its conversation is conducted, not what it is about."""
MAX_ITERATIONS = 20
MAX_SUB_CALLS = 30
"""What a task is allowed by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputVariable:
    """An input, as described to the model. Its value is already in the kernel."""

    name: str
    type: str
    size: str
    """Its length with the unit, e.g. ``12,000 characters``; empty where there is none."""
    preview: str
    """At most `PREVIEW_CHARS` of it: what `truncate` leaves."""


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file that was put into the machine."""

    path: str
    """Absolute, in the machine."""
    size: int
    """In bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFacts:
    """What the model should know of its machine."""

    isolation: str = "namespace"
    fidelity: str = "disk"
    root: bool = False
    network: bool = False
    limits: Mapping[str, str] = field(default_factory=dict[str, str])
    """What is limited, and to how much: ``{"memory": "2048 MiB", "one cell": "300 s"}``."""
    notes: tuple[str, ...] = ()
    """Whole sentences on what is special."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """Where a branched conversation comes from."""

    history: tuple[Message, ...]
    """The other conversation, up to the reply whose cell called ``branches``."""
    plan: str
    number: int
    """Counts from 1."""
    count: int
    notes: tuple[str, ...] = ()
    """Whole sentences on what the copy does not have."""


@dataclass(frozen=True, slots=True)
class Task:
    """One run's task. Raises `InputError` when no step is allowed."""

    signature: Signature
    _: KW_ONLY
    inputs: tuple[InputVariable, ...] = ()
    files: tuple[InputFile, ...] = ()
    machine: MachineFacts = field(default_factory=MachineFacts)
    instructions: str = ""
    max_iterations: int = MAX_ITERATIONS
    max_sub_calls: int = MAX_SUB_CALLS
    verify: str | None = None
    """A shell command that accepts outputs by its exit code 0; it gets them as JSON."""
    functions: tuple[ReplFunction, ...] = ()
    """What cells can call, beside FINAL."""
    branch: Branch | None = None
    """Set if this conversation continues a copy of another."""
    mark: str = ""
    """Drawn for each run and part of the tags around data in prompts, so that data cannot contain
    them. Without one, the tags have none."""
    repeats_told: int = 3
    repeats_ended: int = 5
    """How often the same failing reply may come in a row until the model is told so, and until the
    outputs are extracted; 0 for never."""

    def to_json(self) -> dict[str, JsonValue]:
        """The task of a run's own conversation, for `from_json`."""
        names = [f.name for f in fields(self) if f.name not in ("branch", "functions")]
        values = {name: getattr(self, name) for name in names}
        for name in _CONDUCT:  # older journals hold none of these
            if not values[name]:
                del values[name]
        return {
            **values,
            "signature": str(self.signature),
            "inputs": [asdict(each) for each in self.inputs],
            "files": [asdict(each) for each in self.files],
            "machine": asdict(self.machine),
        }

    def about(self) -> dict[str, JsonValue]:
        """What the task is about, without how its conversation is conducted."""
        return {name: value for name, value in self.to_json().items() if name not in _CONDUCT}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], functions: tuple[ReplFunction, ...]) -> Task:
        """What `to_json` made, with these functions.

        Raises `KeyError`, `TypeError` or `InputError` for anything else.
        """
        machine: dict[str, Any] = {**values["machine"], "notes": tuple(values["machine"]["notes"])}
        parts: dict[str, Any] = {
            "signature": Signature.parse(values["signature"]),
            "inputs": tuple(InputVariable(**each) for each in values["inputs"]),
            "files": tuple(InputFile(**each) for each in values["files"]),
            "machine": MachineFacts(**machine),
            "functions": functions,
            "repeats_told": values.get("repeats_told", 0),
            "repeats_ended": values.get("repeats_ended", 0),
        }
        return cls(**{**values, **parts})

    def __post_init__(self) -> None:
        if self.max_iterations < 1:
            raise InputError(f"A run has at least 1 iteration, not {self.max_iterations}.")


def describe(name: str, value: JsonValue, *, encoded: str | None = None) -> InputVariable:
    """Describe an input to the model. `encoded` is the value's JSON, if it is known already."""
    if isinstance(value, str):
        return InputVariable(
            name=name, type="str", size=_count(value, "character"), preview=preview(value)
        )
    text = json.dumps(value, ensure_ascii=False) if encoded is None else encoded
    size = _count(value, "item") if isinstance(value, list | dict) else ""
    return InputVariable(name=name, type=type(value).__name__, size=size, preview=preview(text))


def preview(text: str) -> str:
    """The beginning and the end of a value, as a prompt shows it."""
    return truncate(text, PREVIEW_CHARS)


def _count(value: str | list[JsonValue] | dict[str, JsonValue], noun: str) -> str:
    return f"{len(value):,} {noun}{'' if len(value) == 1 else 's'}"
