"""What known models cost, in USD per million tokens.

List prices of the providers, read in November 2026 from https://platform.claude.com/docs/en/about-claude/pricing
and https://developers.openai.com/api/docs/pricing. A model that is not in the table has no known
price, and what it costs is None: never 0, never a guess.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vers_rlm_mcp.values import Usage

_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Price:
    """USD per million tokens of each kind; cache writes at the shortest lifetime, which we use.

    A prompt of more than `long_prompt` tokens, cached ones included, costs `long_input` times as
    much for everything that goes in and `long_output` times as much for what comes out.
    """

    input: float
    output: float
    cache_read: float
    cache_write: float
    long_prompt: int | None = None
    long_input: float = 1.0
    long_output: float = 1.0

    def usd(self, usage: Usage) -> float:
        """What one call with this usage costs. The `usd` of `usage` is not looked at."""
        prompt = usage.tokens - usage.output_tokens
        is_long = self.long_prompt is not None and prompt > self.long_prompt
        going_in = (
            usage.input_tokens * self.input
            + usage.cache_read_tokens * self.cache_read
            + usage.cache_write_tokens * self.cache_write
        )
        coming_out = usage.output_tokens * self.output
        if is_long:
            going_in, coming_out = going_in * self.long_input, coming_out * self.long_output
        return (going_in + coming_out) / _MILLION


FREE = Price(0, 0, 0, 0)
"""For what nobody is billed for."""


def _openai(price: float, output: float, cache_read: float) -> Price:
    """A current OpenAI model: all share the surcharge of writing the cache and of long prompts."""
    return Price(price, output, cache_read, 1.25 * price, 272_000, 2.0, 1.5)


PRICES: Mapping[str, Price] = {
    "claude-fable-5-2": Price(8, 40, 0.20, 10),
    "claude-fable-5-1": Price(10, 50, 0.25, 12.50),
    "claude-opus-5-5": Price(4, 20, 0.20, 5),
    "claude-opus-5": Price(5, 25, 0.50, 6.25),
    "claude-sonnet-5-5": Price(2, 10, 0.10, 2.50),
    "claude-sonnet-5": Price(2, 10, 0.20, 2.50),
    "claude-haiku-5-5": Price(0.10, 0.50, 0.01, 0.125, 100_000, 5.0, 5.0),
    "claude-haiku-4-5": Price(1, 5, 0.10, 1.25),
    "gpt-6.2-astra": _openai(8, 40, 0.40),
    "gpt-6.2-sol": _openai(2, 10, 0.10),
    "gpt-6.1-sol": _openai(2, 10, 0.10),
    "gpt-6.1-terra": _openai(1, 5, 0.05),
    "gpt-6-astra": _openai(10, 50, 1.00),
    "gpt-6-sol": _openai(2, 10, 0.20),
    "gpt-6-luna": _openai(0.10, 0.50, 0.01),
}
