"""Prices of known models, in USD per million tokens.

These are the providers' list prices as of November 2026, from
https://platform.claude.com/docs/en/about-claude/pricing and
https://developers.openai.com/api/docs/pricing. The cost of a model that is not listed is None:
never 0, never a guess.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vers_rlm_mcp.values import Usage

_MILLION = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """USD per million tokens of each kind. Cache writes are priced at the shortest lifetime.

    For a prompt of more than `long_prompt` tokens, including cached ones, all input costs
    `long_input` times and all output `long_output` times as much.
    """

    input: float
    output: float
    cache_read: float
    cache_write: float
    long_prompt: int | None = None
    long_input: float = 1.0
    long_output: float = 1.0

    def usd(self, usage: Usage) -> float:
        """The cost of one call with this usage, whatever `usage.usd` says."""
        prompt = usage.tokens - usage.output_tokens
        is_long = self.long_prompt is not None and prompt > self.long_prompt
        sent = (
            usage.input_tokens * self.input
            + usage.cache_read_tokens * self.cache_read
            + usage.cache_write_tokens * self.cache_write
        )
        received = usage.output_tokens * self.output
        if is_long:
            sent, received = sent * self.long_input, received * self.long_output
        return (sent + received) / _MILLION


FREE = Price(input=0, output=0, cache_read=0, cache_write=0)
"""The price of a model that costs nothing."""


def _openai(*, input: float, output: float, cache_read: float) -> Price:  # noqa: A002 - as in Price
    """A current OpenAI model. All have the same surcharges for cache writes and long prompts."""
    return Price(
        input=input,
        output=output,
        cache_read=cache_read,
        cache_write=1.25 * input,
        long_prompt=272_000,
        long_input=2.0,
        long_output=1.5,
    )


PRICES: Mapping[str, Price] = {
    "claude-fable-5-2": Price(input=8, output=40, cache_read=0.20, cache_write=10),
    "claude-fable-5-1": Price(input=10, output=50, cache_read=0.25, cache_write=12.50),
    "claude-opus-5-5": Price(input=4, output=20, cache_read=0.20, cache_write=5),
    "claude-opus-5": Price(input=5, output=25, cache_read=0.50, cache_write=6.25),
    "claude-sonnet-5-5": Price(input=2, output=10, cache_read=0.10, cache_write=2.50),
    "claude-sonnet-5": Price(input=2, output=10, cache_read=0.20, cache_write=2.50),
    "claude-haiku-5-5": Price(
        input=0.10,
        output=0.50,
        cache_read=0.01,
        cache_write=0.125,
        long_prompt=100_000,
        long_input=5.0,
        long_output=5.0,
    ),
    "claude-haiku-4-5": Price(input=1, output=5, cache_read=0.10, cache_write=1.25),
    "gpt-6.2-astra": _openai(input=8, output=40, cache_read=0.40),
    "gpt-6.2-sol": _openai(input=2, output=10, cache_read=0.10),
    "gpt-6.1-sol": _openai(input=2, output=10, cache_read=0.10),
    "gpt-6.1-terra": _openai(input=1, output=5, cache_read=0.05),
    "gpt-6-astra": _openai(input=10, output=50, cache_read=1.00),
    "gpt-6-sol": _openai(input=2, output=10, cache_read=0.20),
    "gpt-6-luna": _openai(input=0.10, output=0.50, cache_read=0.01),
}
