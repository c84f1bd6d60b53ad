"""Values that cross rooms: a model's messages and replies, a cell's functions and answer.

Annotations are evaluated here: journals are read by them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Literal, cast

from pydantic import JsonValue

MAX_DEPTH = 200
"""Levels of lists and objects in a value that a run takes. One that has 255 could not
be read from a journal."""

Role = Literal["system", "user", "assistant"]
StopReason = Literal["end", "length", "refusal", "unknown"]
"""How a reply ended: by itself, cut off at a limit, refused (by the model or by a filter), or in a
way that is not known. Only of a reply that ended by itself is it certain that it is whole."""
CellStatus = Literal["ok", "error", "final", "timeout", "died", "interrupted"]


def is_too_deep(value: object) -> bool:
    """Whether lists and objects are nested deeper than `MAX_DEPTH` levels in a JSON value."""
    level = {id(value): value}
    for _ in range(MAX_DEPTH):
        level = {id(part): part for item in level.values() for part in _containers_in(item)}
        if not level:
            return False
    return True


def _containers_in(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        value = list(cast("dict[object, object]", value).values())
    if isinstance(value, (list, tuple)):
        for part in cast("Iterable[object]", value):
            if isinstance(part, (dict, list, tuple)):
                yield cast("object", part)


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation with a model. Only the first may be of role ``system``."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Usage:
    """What calls to models consumed, as the provider reported it.

    Token counts are disjoint: `input_tokens` leaves out what was read from or written to the
    provider's prompt cache. `usd` is None when a price is not known; a sum with an unknown part
    is unknown. `estimated` says that counts were derived from the length of the texts, since the
    provider reported none that can be believed.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    usd: float | None = 0.0
    estimated: bool = field(default=False, kw_only=True, metadata={"later": True})

    @property
    def tokens(self) -> int:
        """All tokens, cached ones included."""
        return (
            self.input_tokens
            + self.output_tokens
            + self.cache_read_tokens
            + self.cache_write_tokens
        )

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cache_read_tokens + other.cache_read_tokens,
            self.cache_write_tokens + other.cache_write_tokens,
            None if self.usd is None or other.usd is None else self.usd + other.usd,
            estimated=self.estimated or other.estimated,
        )


@dataclass(frozen=True, slots=True)
class Completion:
    """A model's reply."""

    text: str
    """The reply without the model's thoughts."""
    usage: Usage = field(default_factory=Usage)
    stop_reason: StopReason = "end"
    _: KW_ONLY
    thoughts: str = ""
    """For people and the journal. They are no part of later requests."""
    was_run: str | None = None
    """The code that was run of a recorded reply, empty for none; None for a new reply."""


@dataclass(frozen=True, slots=True)
class Final:
    """The arguments of a call of ``FINAL`` in a cell."""

    args: Sequence[JsonValue] = ()
    kwargs: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])


@dataclass(frozen=True, slots=True)
class CellResult:
    """How a cell ended."""

    status: CellStatus
    output: str = ""
    """What was written to standard output and error, and the echo of the last expression. Beyond
    the kernel's limit the middle is replaced by the number of bytes left out."""
    _: KW_ONLY
    error: str | None = None
    """The traceback with the cell's own lines, or what happened to the kernel."""
    final: Final | None = None
    """Set if, and only if, the status is ``final``."""
    seconds: float = 0.0
    lost: tuple[str, ...] = ()
    """Variables that are gone because the kernel had to be restarted."""
    notes: tuple[str, ...] = ()
    """Whole sentences for the model: variables that are lost, a budget that runs low."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A parameter of a function of the REPL."""

    name: str
    type: Literal["str", "int"] | None
    """Checked in the machine before the host is called; None leaves the check to the host."""
    required: bool
    default: str | int | None
    """The default of a parameter that is not required."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplFunction:
    """A function of the REPL, as it is described to models and called by cells."""

    name: str
    twin: str
    """Its snake_case name; equal to `name` where there is none."""
    call: str
    """How it is called, as in ``vmBranch(count=1)``."""
    usage: str
    """What it does and returns, in one line."""
    parameters: tuple[Parameter, ...]
    """The parameters of the call to the host. Code in the machine may take others."""
    copies: bool
    """Whether it copies the kernel's machine, so that variables are saved before."""
