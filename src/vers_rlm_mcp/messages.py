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
