"""The two values that models, engine and driver exchange: messages and usage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]


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
    is unknown.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    usd: float | None = 0.0

    @property
    def tokens(self) -> int:
        """All tokens, cached ones included."""
        return (
            self.input_tokens
            + self.output_tokens
            + self.cache_read_tokens
            + self.cache_write_tokens
        )

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cache_read_tokens + other.cache_read_tokens,
            self.cache_write_tokens + other.cache_write_tokens,
            None if self.usd is None or other.usd is None else self.usd + other.usd,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A parameter of a function of the REPL."""

    name: str
    type: Literal["str", "int"] | None
    """Checked in the machine before the host is called; None leaves the check to the host."""
    required: bool
    default: str | int | None
    """Of a parameter that is not required."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplFunction:
    """A function of the REPL, as models are told of it and as cells can call it."""

    name: str
    twin: str
    """Its snake_case name; equal to `name` where there is none."""
    call: str
    """How it is called, as in ``vmBranch(count=1)``."""
    usage: str
    """What it does and returns, in one line."""
    parameters: tuple[Parameter, ...]
    """Those of the call to the host. Code in the machine may take others."""
    copies: bool
    """Whether it copies the kernel's machine, so that variables are saved before."""
