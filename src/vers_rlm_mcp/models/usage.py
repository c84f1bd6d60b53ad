"""What a call has consumed: as the provider reports it, where that can be believed.

Counts end up in budgets. One that is not a whole number between 0 and `MAX_COUNT` is no count, and
what is missing is estimated from the length of the texts, and marked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from vers_rlm_mcp.values import Usage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vers_rlm_mcp.values import Message

MAX_COUNT = 10_000_000
"""Tokens of one call: more than any model's context."""

_BYTES_PER_TOKEN = 4
"""A rule of thumb for English and code."""


def read_count(value: object) -> int | None:
    """A count of tokens; None for what is not one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # A comparison with NaN is false.
    return int(value) if 0 <= value <= MAX_COUNT and value == int(value) else None


@dataclass(slots=True)
class Reported:
    """The parts of a usage that a provider has reported. They are disjoint, as in `Usage`."""

    input: int | None = None
    output: int | None = None
    cache_read: int = 0
    cache_write: int = 0
    is_doubtful: bool = False
    """Whether the provider has reported something that cannot be right."""

    def usage(self, messages: Sequence[Message], reply: str) -> Usage:
        """The usage of a call, without its price; what is missing is estimated."""
        asked = sum(len(message.content.encode()) for message in messages)
        replied = len(reply.encode())
        sent, received, is_estimated = self.input, self.output, self.is_doubtful
        if sent is None or (asked and not sent + self.cache_read + self.cache_write):
            sent, is_estimated = _estimate(asked), True
        if received is None or (replied and not received):
            received, is_estimated = _estimate(replied), True
        return Usage(
            sent, received, self.cache_read, self.cache_write, usd=None, estimated=is_estimated
        )


def estimate_usage(messages: Sequence[Message], reply: str) -> Usage:
    """The usage of a call to a model that reports none."""
    return Reported().usage(messages, reply)


def _estimate(size: int) -> int:
    return -(-size // _BYTES_PER_TOKEN)


def read_openai_usage(reported: object) -> Reported:
    """Make the counts disjoint: the prompt's tokens include reads and writes of the cache."""
    if not isinstance(reported, Mapping):
        return Reported()
    fields = cast("Mapping[str, object]", reported)
    prompt = _first(fields, "prompt_tokens", "input_tokens")
    output = _first(fields, "completion_tokens", "output_tokens")
    total = read_count(fields.get("total_tokens"))
    if prompt is None and None not in {total, output}:
        prompt = read_count(cast("int", total) - cast("int", output))
    if output is None and None not in {total, prompt}:
        output = read_count(cast("int", total) - cast("int", prompt))
    details = fields.get("prompt_tokens_details") or fields.get("input_tokens_details")
    # DeepSeek and Moonshot report reads beside the counts.
    cached = dict(fields)
    if isinstance(details, Mapping):
        cached |= cast("Mapping[str, object]", details)
    read = _first(cached, "cached_tokens", "prompt_cache_hit_tokens") or 0
    written = _first(cached, "cache_write_tokens") or 0
    if prompt is None:
        return Reported(None, output)
    if read + written > prompt:
        return Reported(prompt, output, is_doubtful=True)
    return Reported(prompt - read - written, output, read, written)


def _first(fields: Mapping[str, object], *names: str) -> int | None:
    return next(
        (count for name in names if (count := read_count(fields.get(name))) is not None), None
    )


def read_anthropic_usage(reported: object) -> Reported:
    """Read the latest cumulative counts, which are disjoint already."""
    fields: Mapping[str, object] = {}
    if isinstance(reported, Mapping):
        fields = cast("Mapping[str, object]", reported)
    return Reported(
        read_count(fields.get("input_tokens")),
        read_count(fields.get("output_tokens")),
        read_count(fields.get("cache_read_input_tokens")) or 0,
        read_count(fields.get("cache_creation_input_tokens")) or 0,
    )
