"""The Messages API: prompt caching, usage and stop reasons."""

from __future__ import annotations

import copy
import itertools
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import anyio
import pytest
from servers import Answer, AnthropicServer, Failure, Raw, Reply

from vers_rlm_mcp.errors import ModelError, ModelFailed, ModelUnavailable
from vers_rlm_mcp.models import open_model
from vers_rlm_mcp.values import Completion, Message, Usage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from servers import Request

    from vers_rlm_mcp.models import Model

SYSTEM = Message("system", "You have a REPL.")
Json = dict[str, Any]


def open_at(server: AnthropicServer) -> Model:
    env = {"ANTHROPIC_API_KEY": "sk-ant-1234567890", "ANTHROPIC_BASE_URL": server.url}
    return open_model("anthropic:claude-sonnet-5-5", env)


async def ask(
    messages: Sequence[Message], *answers: Answer, max_tokens: int | None = None
) -> tuple[Completion, Request]:
    async with AnthropicServer(answers or (Reply(),)) as server:
        model = open_at(server)
        with anyio.fail_after(10):
            completion = await model.complete(messages, max_tokens=max_tokens)
        await model.aclose()
        return completion, server.requests[-1]


async def transcript(turns: int) -> list[Json]:
    """The bodies of the requests of a conversation of this many turns."""
    messages = [SYSTEM, Message("user", "Task: ünïcode")]
    async with AnthropicServer([Reply("print(1)")]) as server:
        model = open_at(server)
        with anyio.fail_after(10):
            for turn in range(turns):
                completion = await model.complete(messages)
                messages += [Message("assistant", completion.text), Message("user", f"out {turn}")]
        await model.aclose()
        return [request.body for request in server.requests]


def breakpoints(body: Json) -> list[int]:
    """The numbers of the messages that end in a cache breakpoint."""
    return [
        number
        for number, message in enumerate(body["messages"])
        if any("cache_control" in block for block in message["content"])
    ]


def without_breakpoints(body: Json) -> Json:
    plain = copy.deepcopy(body)
    blocks: list[Json] = [
        *plain["system"],
        *(block for message in plain["messages"] for block in message["content"]),
    ]
    for block in blocks:
        block.pop("cache_control", None)
    return plain


async def test_each_request_repeats_the_one_before_byte_for_byte():
    bodies = [without_breakpoints(body) for body in await transcript(4)]
    for earlier, later in itertools.pairwise(bodies):
        assert later["system"] == earlier["system"]
        prefix = json.dumps(earlier["messages"])[:-1]
        assert json.dumps(later["messages"]).startswith(prefix)


async def test_breakpoints_end_this_request_and_the_one_before():
    bodies = await transcript(4)
    assert [breakpoints(body) for body in bodies] == [[0], [0, 2], [2, 4], [4, 6]]
    for body in bodies:
        assert body["system"][-1]["cache_control"] == {"type": "ephemeral"}
        assert json.dumps(body).count("cache_control") <= 4


async def test_a_single_question_writes_no_cache():
    _, request = await ask([Message("user", "Summarise this.")])
    assert b"cache_control" not in request.raw
    assert "system" not in request.body


async def test_tokens_of_the_cache_are_counted_apart():
    usage = {
        "input_tokens": 3,
        "output_tokens": 100,
        "cache_read_input_tokens": 1000,
        "cache_creation_input_tokens": 200,
    }
    completion, _ = await ask([SYSTEM, Message("user", "go")], Reply("ok", usage=usage))
    usd = (3 * 2 + 100 * 10 + 1000 * 0.10 + 200 * 2.50) / 1_000_000
    assert replace(completion.usage, usd=None) == Usage(3, 100, 1000, 200, None)
    assert completion.usage.usd == pytest.approx(usd)


async def test_a_model_without_a_known_price_has_no_cost():
    async with AnthropicServer() as server:
        env = {"ANTHROPIC_API_KEY": "sk-ant-1234567890", "ANTHROPIC_BASE_URL": server.url}
        model = open_model("anthropic:claude-next", env)
        with anyio.fail_after(10):
            completion = await model.complete([Message("user", "go")])
        await model.aclose()
    assert model.price is None
    assert completion.usage == Usage(10, 5, 0, 0, None)


@pytest.mark.parametrize(
    ("stop", "reason"),
    [
        ("end_turn", "end"),
        ("stop_sequence", "end"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "refusal"),
        ("a_reason_of_the_future", "unknown"),
    ],
)
async def test_stop_reasons_are_told_apart(stop: str, reason: str):
    completion, _ = await ask([Message("user", "go")], Reply("text", stop=stop))
    assert completion.stop_reason == reason


async def test_thinking_is_not_part_of_the_text_and_unknown_events_are_passed_over():
    def sse(data: Json) -> bytes:
        return f"event: {data['type']}\ndata: {json.dumps(data)}\n\n".encode()

    usage = {"input_tokens": 1, "output_tokens": 1}
    delta: Json = {"type": "content_block_delta", "index": 0}
    stream = b"".join(
        [
            sse({"type": "message_start", "message": {"content": [], "usage": usage}}),
            sse({"type": "future_event", "news": True}),
            sse({**delta, "delta": {"type": "thinking_delta", "thinking": "Hmm."}}),
            sse({**delta, "delta": {"type": "text_delta", "text": "Aha."}}),
            sse({**delta, "delta": {"type": "future_delta", "text": "?"}}),
            sse({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage}),
            sse({"type": "message_stop"}),
        ]
    )
    completion, _ = await ask([Message("user", "go")], Raw(stream))
    assert completion.text == "Aha."


async def test_the_limit_of_a_reply_is_passed_on_and_has_a_default():
    _, request = await ask([Message("user", "go")], max_tokens=77)
    assert request.body["max_tokens"] == 77
    _, request = await ask([Message("user", "go")])
    assert request.body["max_tokens"] == 32_000


async def test_a_message_without_a_visible_character_is_sent_as_one_the_api_takes():
    turns = [SYSTEM, Message("user", "go"), Message("assistant", " \n"), Message("user", "")]
    _, request = await ask(turns)
    texts = [message["content"][0]["text"] for message in request.body["messages"]]
    assert texts == ["go", "(nothing)", "(nothing)"]


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("authentication_error", ModelUnavailable),
        ("billing_error", ModelUnavailable),
        ("not_found_error", ModelUnavailable),
        ("invalid_request_error", ModelFailed),
    ],
)
async def test_an_error_in_the_middle_of_a_stream_means_what_its_type_says(
    kind: str, error: type[ModelError]
):
    body = {"type": "error", "error": {"type": kind, "message": "No."}}
    stream = Raw(f"event: error\ndata: {json.dumps(body)}\n\n".encode())
    async with AnthropicServer([stream]) as server:
        model = open_at(server)
        with anyio.fail_after(10), pytest.raises(error, match=r"No\."):
            await model.complete([Message("user", "go")])
        await model.aclose()
        assert len(server.requests) == 1


async def test_a_spend_limit_is_the_users_to_change_though_it_comes_as_429():
    details = cast("Json", {"error_code": "enforced_spend_limit_reached"})
    body = {"error": {"type": "rate_limit_error", "message": "Limit.", "details": details}}
    async with AnthropicServer([Failure(429, body)]) as server:
        model = open_at(server)
        with anyio.fail_after(10), pytest.raises(ModelUnavailable, match="billing"):
            await model.complete([Message("user", "go")])
        await model.aclose()
        assert len(server.requests) == 1
