"""A provider's word for the end of a reply means one thing, or is unknown."""

from __future__ import annotations

import pytest

from vers_rlm_mcp.errors import ModelFailed
from vers_rlm_mcp.models import read_stop_reason_of_sampling
from vers_rlm_mcp.models.stop_reasons import ANTHROPIC, OPENAI, read_stop_reason


@pytest.mark.parametrize(
    ("words", "meaning"),
    [
        ("stop STOP tool_calls function_call eos eos_token stop_sequence end_turn COMPLETE", "end"),
        ("length max_tokens MAX_TOKENS model_length max_output_tokens repetition", "length"),
        ("content_filter content-filter SAFETY RECITATION sensitive PROHIBITED_CONTENT", "refusal"),
        ("error abort aborted insufficient_system_resource network_error", "failed"),
        ("MALFORMED_FUNCTION_CALL function_call_filter:MALFORMED_FUNCTION_CALL", "failed"),
        ("content_filter:PROHIBITED_CONTENT", "refusal"),
        ("null None", None),
        ("stopped_for_lunch other unknown 7", "unknown"),
    ],
)
def test_words_of_openai_and_of_compatible_servers(words: str, meaning: str | None):
    assert {read_stop_reason(OPENAI, word) for word in words.split()} == {meaning}


@pytest.mark.parametrize("word", [None, "", "null"])
def test_a_reply_without_a_word_is_not_complete(word: str | None):
    assert read_stop_reason(OPENAI, word) is None


def test_words_of_anthropic():
    words = {
        "end_turn": "end",
        "stop_sequence": "end",
        "max_tokens": "length",
        "model_context_window_exceeded": "length",
        "refusal": "refusal",
        "pause_turn": "paused",
        "length": "unknown",
    }
    assert {word: read_stop_reason(ANTHROPIC, word) for word in words} == words


def test_words_of_mcp_clients():
    words = {
        None: "end",
        "endTurn": "end",
        "end_turn": "end",
        "maxTokens": "length",
        "x": "unknown",
    }
    assert {word: read_stop_reason_of_sampling(word) for word in words} == words
    with pytest.raises(ModelFailed, match=r"broke off its reply \(error\)"):
        read_stop_reason_of_sampling("error")
