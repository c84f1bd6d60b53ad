"""The conversation only grows, and what is cut says so."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, strategies as st

from vers_rlm_mcp.folding import fold
from vers_rlm_mcp.rlm import PREVIEW_CHARS, describe, truncate
from vers_rlm_mcp.rlm.transcript import EMPTY_REPLY, Transcript
from vers_rlm_mcp.values import Message

if TYPE_CHECKING:
    from pydantic import JsonValue


@given(st.text(), st.integers(0, 50))
def test_truncation_keeps_both_ends_and_counts_what_it_left_out(text: str, limit: int) -> None:
    cut = truncate(text, limit)
    if len(text) <= limit:
        assert cut == text
        return
    found = re.fullmatch(r"(.*)\n… ([\d,]+) characters left out …\n(.*)", cut, re.DOTALL)
    assert found
    head, left_out, tail = found[1], int(found[2].replace(",", "")), found[3]
    assert text.startswith(head)
    assert text.endswith(tail)
    assert len(head) + left_out + len(tail) == len(text)
    assert len(head) + len(tail) == limit
    assert 0 <= len(head) - len(tail) <= 1


def test_a_preview_is_half_head_and_half_tail() -> None:
    preview = describe("log", "a" * 5_000 + "z" * 5_000).preview
    assert preview == f"{'a' * 500}\n… 9,000 characters left out …\n{'z' * 500}"
    assert PREVIEW_CHARS == 1_000


def test_an_input_is_described_by_type_and_size() -> None:
    values: dict[str, JsonValue] = {"s": "x", "l": [1, 2], "d": {"k": 1}, "n": 3, "none": None}
    described = [describe(name, value) for name, value in values.items()]
    assert [(each.type, each.size) for each in described] == [
        ("str", "1 character"),
        ("list", "2 items"),
        ("dict", "1 item"),
        ("int", ""),
        ("NoneType", ""),
    ]
    assert described[1].preview == "[1, 2]"


def test_an_encoding_that_is_there_already_is_used() -> None:
    assert describe("l", [1], encoded="[1 ]").preview == "[1 ]"


@given(st.lists(st.text(st.characters())))
def test_messages_are_only_appended_and_always_sendable(texts: list[str]) -> None:
    transcript = Transcript([Message("system", "system"), Message("user", "task")])
    before = transcript.messages
    for text in texts:
        transcript.reply(text)
        transcript.add_message(f"seen: {text}")
        after = transcript.messages
        assert after[: len(before)] == before
        before = after
    assert [m.role for m in before] == ["system", "user"] + ["assistant", "user"] * len(texts)
    for message in before:
        assert message.content
        message.content.encode("utf-8")


def test_an_empty_reply_has_a_text_that_stands_for_it() -> None:
    transcript = Transcript([Message("system", "system"), Message("user", "task")])
    transcript.reply(" \n")
    assert transcript.messages[-1] == Message("assistant", EMPTY_REPLY)


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("plain\ntext", "plain\ntext"),
        ("\r 10%|#   |\r100%|####|\n", "100%|####|\n"),
        ("working\rdone", "doneing"),
        ("working\r\x1b[Kdone", "done"),
        ("working\x1b[2K\rdone", "done"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("a\r\nb\r\n", "a\nb\n"),
        ("spin |\b/\b-", "spin -"),
        ("one\ntwo\x1b[1A\rONE\n\n", "ONE\ntwo\n"),
        ("a: 1\nb: 1\n\x1b[2A\ra: 2\n\x1b[1B", "a: 2\nb: 1\n"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://a\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("abc\x1b[2Dx", "axc"),
        ("\x1b[5Gx", "    x"),
        ("old\n\x1b[2Jnew", "old\nnew"),
        ("bold \x1b(B\x1b[m.", "bold B."),
        ("\x1b[999999999Cx", " x"),
        ("a\x1b", "a"),
        ("", ""),
    ],
)
def test_what_a_terminal_would_show_is_shown(written: str, shown: str) -> None:
    assert fold(written) == shown


def test_of_a_progress_bar_the_last_state_is_left() -> None:
    bar = "".join(f"\r{n:3}%|{'#' * (n // 4):25}| {n}/100" for n in range(101))
    assert len(bar) > 3_500
    assert fold(bar + "\n") == f"100%|{'#' * 25}| 100/100\n"


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "part", ["a\r", "\x1b[A", "\x1b[1000C.", "\x1b[", "\x1b]", "\b", "\x1b[J\n"]
)
def test_folding_takes_no_long_time(part: str) -> None:
    fold(part * 20_000)
