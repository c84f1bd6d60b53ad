"""Thoughts are taken off replies, in every spelling, and data that looks like them is not."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from servers import AnthropicServer, OpenAIServer, Raw

from vers_rlm_mcp.models import open_model
from vers_rlm_mcp.models.thoughts import separate_thoughts
from vers_rlm_mcp.values import Completion, Message

if TYPE_CHECKING:
    from pathlib import Path

    from servers import ModelServer

DRAFT = "Perhaps:\n```python\nFINAL('draft')\n```\nNo."
REAL = "```python\nFINAL('real')\n```"
Json = dict[str, Any]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("<think>", "</think>"),
        ("<think>\n", "\n</think>\n\n"),
        ("<THINK>", "</Think>"),
        ("< think >", "</ think >"),
        ('<think duration="3">', "</think>"),
        ("<thinking>", "</thinking>"),
        ("<thinking>", "</think>"),
        ("<thought>", "</thought>"),
        ("<reasoning>", "</reasoning>"),
        ("<reflection>", "</reflection>"),
        ("<antThinking>", "</antThinking>"),
        ("<REASONING_SCRATCHPAD>", "</REASONING_SCRATCHPAD>"),
        ("<seed:think>", "</seed:think>"),
        ("[THINK]", "[/THINK]"),
        ("◁think▷", "◁/think▷"),
        ("<|begin_of_thought|>", "<|end_of_thought|>"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        ("<|channel>thought\n", "<channel|>"),
        ("<|inner_prefix|>", "<|inner_suffix|>"),
        ("|startthink|", "|endthink|"),
        ("Here is my thought process:\n", "Here is my response:\n"),
        ("analysis", "assistantfinal"),
        ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
        (
            "<|start|>assistant<|channel|>analysis<|message|>",
            "<|end|>\n<|start|>assistant<|channel|>final <|constrain|>json<|message|>",
        ),
        ("", "</think>"),
        ("", "</thinking>\n"),
        ("", "[/THINK]"),
        ("", "<|end|><|start|>assistant<|channel|>final<|message|>"),
        ("\ufeff<think>", "</think>"),
        ("<|im_start|>assistant\n<think>", "</think>"),
        ("Let me see.\n<thinking>\n", "\n</thinking>\n"),
        ("Sure. <think>", "</think>"),
        ("<think>a <think>b", "</think> c</think>"),
        ("<think>The tag <think> opens them. ", "</think>"),
        ("<think>Is it `</think>` that ends them? ", "</think>"),
        ("<think>a</think>\n<think>b", "</think>"),
        ("<think>An open block:\n```python\nFINAL('draft')\n", "</think>\n"),
        ("An open block:\n```python\nFINAL('draft')\n", "\n</think>\n"),
        ("<think>A closed one ```python\nFINAL('draft')\n```", "</think>"),
    ],
)
def test_a_draft_among_thoughts_is_no_part_of_the_reply(before: str, after: str):
    for ending in ("", "\n", "<|im_end|>", "</s>\n"):
        answer, thoughts = separate_thoughts(before + DRAFT + after + REAL + ending)
        assert "draft" not in answer
        assert answer.removeprefix("Let me see.").removeprefix("Sure.").strip() == REAL
        assert "FINAL('draft')" in thoughts


@pytest.mark.parametrize(
    "text",
    [
        f"<think>{DRAFT}",
        f"<think>\n{DRAFT}\n</think>",
        f"{DRAFT}\n</think>",
        f"[THINK]{DRAFT}",
        f"<|channel|>analysis<|message|>{DRAFT}",
        f"Here's my thought process:{DRAFT}",
        f"<think>{DRAFT}\nx = text.split('</think>')",
    ],
)
def test_a_reply_of_thoughts_alone_is_empty(text: str):
    answer, thoughts = separate_thoughts(text)
    assert not answer.strip()
    assert "draft" in thoughts


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (f"<think>a</think>{REAL}</think>", REAL),
        (f"<think>a</think>{REAL}\n</think>\nDone.", f"{REAL}\n\nDone."),
        (f"{REAL}\n<think>\n{DRAFT}", f"{REAL}\n"),
        (f"{REAL}\n<think> Or rather: {DRAFT}", f"{REAL}\n"),
        ("<think></think>\n\nyes", "yes"),
        ("<think/>yes", "yes"),
        ("yes<|eot_id|>", "yes"),
        ("So it is.</think>yes", "yes"),
        ("<think>Hm.</think>\n<answer>\nyes\n</answer>", "yes"),
        ("<|START_THINKING|>Hm.<|END_THINKING|><|START_RESPONSE|>yes<|END_RESPONSE|>", "yes"),
        ('<reasoning>Hm.</reasoning>{"answer": 1}', '{"answer": 1}'),
        (
            '<|channel|>commentary to=functions.python <|constrain|>json<|message|>{"code": "1"}'
            "<|call|>",
            '<tool_call>\n{"name": "python", "arguments": {"code": "1"}}\n</tool_call>',
        ),
    ],
)
def test_what_remains_is_the_reply(text: str, answer: str):
    assert separate_thoughts(text)[0] == answer


@pytest.mark.parametrize(
    "text",
    [
        "yes",
        "  I think\n so ",
        "```python\nx = '<think>a</think>'\n```",
        "```python\ndoc = '''\n<think>\na\n</think>\n'''\n```",
        "- so:\n  ```python\n  re.sub('<think>.*</think>', '', text)\n  ```",
        "So: ```python\nre.sub('<think>.*</think>', '', text)\n```",
        "x = text.split('</think>')[1]\nFINAL(x)",
        'doc = """\n<think>\na\n</think>\n"""\nFINAL(doc)',
        '{"tag": "<think>", "text": "a</think>b"}',
        "It begins with `<think>` and ends with `</think>`.",
        'It begins with "<think>" and ends with "</think>".',
        "A model writes <think>like this</think> before it answers.",
        "The element <think> opens a block of thoughts.",
        "<|im_end|>",
        "analysis",
        "`<|channel|>analysis<|message|>` is a mark of harmony.",
    ],
)
def test_data_that_looks_like_thoughts_stays(text: str):
    assert separate_thoughts(text) == (text, "")


def test_elements_that_a_question_asks_for_stay():
    text = "<reasoning>It rains.</reasoning><answer>no</answer>"
    asked = "Is it dry? Answer as <reasoning>…</reasoning><answer>…</answer>."
    assert separate_thoughts(text, asked) == (text, "")
    assert separate_thoughts("<think>It rains.</think>no", "What is in <think>?")[0] == "no"


@pytest.mark.parametrize(
    "part",
    [
        *("<think>", "</think>", "<think>a</think>", "'</think>'<think>", "<think>`</think>`\n"),
        *("think\n```\n", "think < [ | ` ", "think" + " " * 9, "<" + " " * 9, "<think " + "a" * 99),
        *("<|channel|>", "<|start|>", "<|end|>", "analysis", "Here is my ", "think\n- - - ", "\n"),
    ],
)
def test_a_reply_of_nothing_but_marks_takes_no_time_to_speak_of(part: str):
    started = time.process_time()
    separate_thoughts(part * (500_000 // len(part)))
    assert time.process_time() - started < 3


# Over the wire.


async def ask(server: ModelServer, name: str) -> Completion:
    provider = name.partition(":")[0].upper()
    async with server:
        env = {f"{provider}_API_KEY": "sk-1234567890", f"{provider}_BASE_URL": server.url}
        model = open_model(name, env)
        with anyio.fail_after(10):
            completion = await model.complete([Message("user", "go")])
        await model.aclose()
    return completion


def chunks(*deltas: Json) -> Raw:
    ends: list[Json] = [{"delta": {}, "finish_reason": "stop"}]
    choices = [*({"delta": delta} for delta in deltas), *ends]
    events = (json.dumps({"choices": [{"index": 0, **choice}]}) for choice in choices)
    return Raw("".join(f"data: {event}\n\n" for event in events).encode() + b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    "deltas",
    [
        [{"reasoning_content": "Hm."}, {"content": "yes"}],
        [{"reasoning": "Hm."}, {"content": "yes"}],
        [{"thinking": "Hm."}, {"content": "yes"}],
        [{"reasoning": "Hm.", "reasoning_content": "Hm."}, {"content": "yes"}],
        [
            {"reasoning": "H", "content": ""},
            {"reasoning": "m.", "content": None},
            {"content": "yes"},
        ],
        [{"content": "<thi"}, {"content": "nk>Hm.</thi"}, {"content": "nk>yes"}],
        [{"content": [{"type": "text", "text": "yes"}], "reasoning": "Hm."}],
        [
            {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}]},
            {"content": [{"type": "text", "text": "yes"}]},
        ],
        [{"content": [{"type": "thinking", "thinking": "Hm."}, "yes"]}],
        [{"content": [{"type": "reasoning", "text": "Hm."}, {"type": "text", "text": "yes"}]}],
    ],
)
async def test_thoughts_in_fields_of_their_own_are_kept_apart(deltas: list[Json]):
    completion = await ask(OpenAIServer([chunks(*deltas)]), "openai:m")
    assert (completion.text, completion.thoughts) == ("yes", "Hm.")


async def test_thoughts_in_a_field_and_in_the_text_are_both_kept():
    deltas: list[Json] = [{"reasoning": "Hm."}, {"content": "<think>Aha.</think>yes"}]
    completion = await ask(OpenAIServer([chunks(*deltas)]), "openai:m")
    assert (completion.text, completion.thoughts) == ("yes", "Hm.\n\nAha.")


async def test_a_tool_call_that_nobody_offered_is_part_of_the_text():
    first = {"index": 0, "id": "1", "function": {"name": "python", "arguments": '{"code":'}}
    rest = {"index": 0, "function": {"arguments": ' "1"}'}}
    deltas: list[Json] = [{"content": "So:"}, {"tool_calls": [first]}, {"tool_calls": [rest]}]
    completion = await ask(OpenAIServer([chunks(*deltas)]), "openai:m")
    call = '<tool_call>\n{"name": "python", "arguments": {"code": "1"}}\n</tool_call>'
    assert completion.text == f"So:\n{call}"


def blocks(*parts: Json) -> Raw:
    usage = {"input_tokens": 1, "output_tokens": 1}
    start: Json = {"type": "message_start", "message": {"content": [], "usage": usage}}
    delta = {"stop_reason": "end_turn"}
    end: Json = {"type": "message_delta", "delta": delta, "usage": usage}
    events = [start, *parts, end, {"type": "message_stop"}]
    return Raw("".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in events).encode())


def block(index: int, start: Json, delta: Json) -> list[Json]:
    return [
        {"type": "content_block_start", "index": index, "content_block": start},
        {"type": "content_block_delta", "index": index, "delta": delta},
        {"type": "content_block_stop", "index": index},
    ]


async def test_blocks_of_anthropic_are_kept_apart_and_those_of_text_begin_a_line():
    thinking = {"type": "thinking", "thinking": "", "signature": ""}
    text = {"type": "text", "text": ""}
    tool: Json = {"type": "tool_use", "id": "1", "name": "python", "input": {}}
    parts = [
        *block(0, thinking, {"type": "thinking_delta", "thinking": "Hm."}),
        *block(1, text, {"type": "text_delta", "text": "```python\n1\n```"}),
        *block(2, text, {"type": "text_delta", "text": "That is all."}),
        *block(3, tool, {"type": "input_json_delta", "partial_json": '{"code": "1"}'}),
    ]
    completion = await ask(AnthropicServer([blocks(*parts)]), "anthropic:claude-sonnet-5-5")
    assert completion.thoughts == "Hm."
    assert completion.text == (
        "```python\n1\n```\nThat is all.\n"
        '<tool_call>\n{"name": "python", "arguments": {"code": "1"}}\n</tool_call>'
    )


async def test_a_script_may_hold_thoughts(tmp_path: Path):
    script = tmp_path / "script.txt"
    script.write_text(f"--- reply\n<think>{DRAFT}</think>\n{REAL}\n")
    with anyio.fail_after(5):
        completion = await open_model(f"scripted:{script}", {}).complete([Message("user", "go")])
    assert completion.text == REAL
    assert "draft" in completion.thoughts
