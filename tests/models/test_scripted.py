"""Replies that a person wrote into a file."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import anyio
import pytest

from vers_rlm_mcp.errors import ModelFailed, ModelUnavailable
from vers_rlm_mcp.models import open_model
from vers_rlm_mcp.values import Message, Usage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vers_rlm_mcp.models import Model


@pytest.fixture
def scripted(tmp_path: Path) -> Callable[[str], Model]:
    def write(script: str) -> Model:
        path = tmp_path / "script.md"
        path.write_text(script, encoding="utf-8")
        return open_model(f"scripted:{path}", {})

    return write


def conversation(*texts: str) -> list[Message]:
    """User and assistant in turn, after a system message."""
    turns = (
        Message("assistant" if number % 2 else "user", text) for number, text in enumerate(texts)
    )
    return [Message("system", "be brief"), *turns]


async def reply(model: Model, *texts: str) -> str:
    return (await model.complete(conversation(*texts))).text


async def test_replies_follow_the_number_of_replies_in_the_conversation(
    scripted: Callable[[str], Model],
):
    model = scripted("--- reply\nfirst\n--- reply\nsecond\n")
    assert await reply(model, "go") == "first"
    assert await reply(model, "go", "first", "on") == "second"
    assert await reply(model, "go") == "first"


async def test_a_reply_keeps_its_code_blocks_indentation_and_inner_blank_lines(
    scripted: Callable[[str], Model],
):
    text = "Look:\n\n```python\nfor x in y:\n    print(x)\n\n```\n---\nnot a header"
    model = scripted(f"A note to the reader.\n--- reply\n{text}\n\n--- reply\nnext\n")
    assert await reply(model, "go") == text


async def test_a_reply_may_be_empty(scripted: Callable[[str], Model]):
    assert await reply(scripted("--- reply\n--- reply\nnext\n"), "go") == ""


async def test_a_reply_whose_condition_fits_goes_before_the_turn(
    scripted: Callable[[str], Model],
):
    model = scripted('--- reply when="^Sum up (one|two)"\na sum\n--- reply\nfirst\n')
    assert await reply(model, "Sum up two things") == "a sum"
    assert await reply(model, "Please: Sum up two things") == "first"


async def test_only_the_last_message_is_looked_at_for_a_condition(
    scripted: Callable[[str], Model],
):
    model = scripted("--- reply when=^apples\nfruit\n--- reply\nfirst\n--- reply\nsecond\n")
    assert await reply(model, "apples", "fruit", "pears") == "second"


async def test_fifty_runs_at_once_each_get_the_whole_script(scripted: Callable[[str], Model]):
    model = scripted("".join(f"--- reply seconds=0.001\nreply {n}\n" for n in range(5)))
    finished: list[list[str]] = []

    async def run(number: int) -> None:
        texts = [f"run {number}"]
        for _ in range(5):
            texts += [await reply(model, *texts), "go on"]
        finished.append(texts[1::2])

    with anyio.fail_after(10):
        async with anyio.create_task_group() as runs:
            for number in range(50):
                runs.start_soon(run, number)
    assert finished == [[f"reply {n}" for n in range(5)]] * 50


async def test_usage_stop_reason_and_time_are_what_the_script_states(
    scripted: Callable[[str], Model],
):
    model = scripted(
        "--- reply seconds=0.1 input_tokens=9 output_tokens=4 cache_read_tokens=3 "
        "cache_write_tokens=2 usd=0.5 stop=length\ntext\n"
    )
    start = time.monotonic()
    completion = await model.complete(conversation("go"))
    assert time.monotonic() - start >= 0.1
    assert completion.usage == Usage(9, 4, 3, 2, 0.5)
    assert completion.stop_reason == "length"


async def test_what_is_not_stated_costs_nothing(scripted: Callable[[str], Model]):
    completion = await scripted("--- reply\ntext\n").complete(conversation("go"))
    assert completion.usage == Usage()
    assert completion.stop_reason == "end"


async def test_a_script_that_runs_out_says_which_reply_was_missing_and_for_what(
    scripted: Callable[[str], Model],
):
    model = scripted("--- reply\nfirst\n")
    with pytest.raises(ModelFailed, match=r"has 1 replies.*reply 2.*'and then\?'"):
        await reply(model, "go", "first", "and then?")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("no header at all", "begin each with a line `--- reply`"),
        ("note\n--- reply speed=3\ntext", "Line 2 .*'speed=3' is none of the fields"),
        ("--- reply fast\ntext", "Line 1 .*'fast' is none of the fields"),
        ("--- reply seconds=soon\ntext", "Line 1 .*soon"),
        ('--- reply when="(open"\ntext', "Line 1 .*unterminated"),
        ('--- reply when="open\ntext', "Line 1 .*No closing quotation"),
        ("--- reply stop=never\ntext", "Line 1 .*stop=never is none of end, length, refusal"),
    ],
)
def test_a_script_that_makes_no_sense_is_refused_with_its_line(
    scripted: Callable[[str], Model], script: str, message: str
):
    with pytest.raises(ModelUnavailable, match=message):
        scripted(script)


def test_a_script_that_cannot_be_read_is_named(tmp_path: Path):
    with pytest.raises(ModelUnavailable, match=r"absent\.md cannot be read"):
        open_model(f"scripted:{tmp_path / 'absent.md'}", {})
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelUnavailable, match="binary cannot be read"):
        open_model(f"scripted:{tmp_path / 'binary'}", {})
    with pytest.raises(ModelUnavailable, match="cannot be read"):
        open_model(f"scripted:{tmp_path}", {})
