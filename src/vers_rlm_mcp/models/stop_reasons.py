"""What providers' words for the end of a reply mean.

A table is closed: a word that it lacks means ``unknown``, and the reply may be half of one. Case
and punctuation do not matter, since proxies rewrite words (``endTurn``, ``content-filter``), and
what follows a colon is an explanation, as in Gemini's ``content_filter: SAFETY``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal, TypeAlias

from vers_rlm_mcp.errors import ModelFailed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vers_rlm_mcp.values import StopReason

Meaning: TypeAlias = "StopReason | Literal['paused', 'failed']"
"""``paused``: the model continues when it is asked to. ``failed``: the provider broke off; the
same request may succeed. Neither leaves this package."""

_NOT_A_LETTER = re.compile(r"[^a-z]")


def read_stop_reason(table: Mapping[str, Meaning], word: object) -> Meaning | None:
    """The meaning of a provider's word; None for a reply that is still incomplete."""
    if word is None or str(word).strip().lower() in _ABSENT:
        return None
    return table.get(_key(str(word)), "unknown")


def read_stop_reason_of_sampling(word: str | None) -> StopReason:
    """The meaning of the stop reason of an MCP client's reply, which may have none.

    Raises `ModelFailed` if the client's model broke off.
    """
    meaning = read_stop_reason(SAMPLING, word)
    if meaning == "failed" or meaning == "paused":
        raise ModelFailed(f"The MCP client's model broke off its reply ({word}). Try again.")
    return meaning or "end"


def _key(word: str) -> str:
    return _NOT_A_LETTER.sub("", word.partition(":")[0].lower())


def _table(words: Mapping[Meaning, str]) -> Mapping[str, Meaning]:
    return {_key(word): meaning for meaning, listed in words.items() for word in listed.split()}


# Written by some servers into every chunk but the last.
_ABSENT = frozenset({"", "null", "none"})

ANTHROPIC = _table(
    {
        # `tool_use`: no tools are offered, so what the reply holds is all there is.
        "end": "end_turn stop_sequence tool_use",
        "length": "max_tokens model_context_window_exceeded",
        "refusal": "refusal",
        "paused": "pause_turn",
    }
)
"""https://platform.claude.com/docs/en/build-with-claude/handling-stop-reasons"""

OPENAI = _table(
    {
        # OpenAI; TGI and Together (`eos`, `eos_token`); servers that pass Anthropic's, Cohere's or
        # Mistral's words through. Tool calls: as above.
        "end": "stop tool_calls function_call tool_use eos eos_token stop_sequence end_turn "
        "complete completed",
        # OpenAI; Mistral (`model_length`); Cohere and Gemini (`MAX_TOKENS`); the Responses API
        # behind a proxy (`max_output_tokens`); vLLM, when it detects a loop (`repetition`).
        "length": "length model_length max_tokens max_output_tokens repetition "
        "model_context_window_exceeded",
        # OpenAI and Azure; Gemini (`SAFETY` and so on); Zhipu (`sensitive`); Bedrock.
        "refusal": "content_filter content_filtered guardrail_intervened refusal safety recitation "
        "blocklist prohibited_content spii sensitive",
        # OpenRouter and LM Studio (`error`); vLLM and SGLang (`abort`); DeepSeek
        # (`insufficient_system_resource`); Zhipu (`network_error`); Gemini behind its compatible
        # API (`function_call_filter: MALFORMED_FUNCTION_CALL`).
        "failed": "error abort aborted cancelled canceled timeout insufficient_system_resource "
        "network_error function_call_filter malformed_function_call",
        "paused": "pause_turn",
    }
)
"""https://platform.openai.com/docs/api-reference/chat, and what compatible servers send."""

SAMPLING = _table(
    {
        "end": "endTurn stopSequence toolUse stop",
        "length": "maxTokens length",
        "refusal": "refusal contentFilter",
        "failed": "error",
    }
)
"""The words that MCP names for sampling; a client may pass on its provider's."""
