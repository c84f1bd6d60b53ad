"""Chat completions: OpenAI's own, and those of servers that are older or know less."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio
import pytest
from servers import Answer, Failure, OpenAIServer, Raw, Reply, Request

from vers_rlm_mcp.errors import ModelError, ModelFailed, ModelUnavailable
from vers_rlm_mcp.models import open_model
from vers_rlm_mcp.values import Completion, Message, Usage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vers_rlm_mcp.models import Model

QUESTION = [Message("user", "What is 6 x 7?")]


def open_at(server: OpenAIServer, model: str = "gpt-6.2-sol") -> Model:
    return open_model(f"openai:{model}", {"OPENAI_BASE_URL": server.url})


async def ask(*answers: Answer, messages: Sequence[Message] = QUESTION) -> Completion:
    async with OpenAIServer(answers) as server:
        model = open_at(server)
        with anyio.fail_after(10):
            completion = await model.complete(messages)
        await model.aclose()
        return completion


async def test_each_request_repeats_the_one_before_byte_for_byte():
    messages = [Message("system", "You have a REPL."), Message("user", "Task: ünïcode")]
    async with OpenAIServer([Reply("print(1)")]) as server:
        model = open_at(server)
        with anyio.fail_after(10):
            for turn in range(4):
                completion = await model.complete(messages)
                messages += [Message("assistant", completion.text), Message("user", f"out {turn}")]
        await model.aclose()
    for earlier, later in itertools.pairwise(server.requests):
        said = json.dumps(earlier.body["messages"], separators=(",", ":"), ensure_ascii=False)
        end = earlier.raw.index(said.encode()) + len(said.encode()) - len("]")
        assert later.raw[:end] == earlier.raw[:end]


async def test_tokens_of_the_cache_are_counted_apart():
    usage = {
        "prompt_tokens": 1300,
        "completion_tokens": 100,
        "prompt_tokens_details": {"cached_tokens": 1000, "cache_write_tokens": 200},
    }
    usd = (100 * 2 + 100 * 10 + 1000 * 0.10 + 200 * 2.50) / 1_000_000
    completion = await ask(Reply("ok", usage=usage))
    assert replace(completion.usage, usd=None) == Usage(100, 100, 1000, 200, None)
    assert completion.usage.usd == pytest.approx(usd)


async def test_a_server_without_usage_gets_an_estimate_that_says_so_and_costs_an_unknown_sum():
    class Silent(OpenAIServer):
        no_usage = True

    async with Silent([Reply("x" * 41)]) as server:
        model = open_at(server)
        with anyio.fail_after(10):
            completion = await model.complete([Message("user", "y" * 400)])
        await model.aclose()
    assert completion.usage == Usage(100, 11, 0, 0, None, estimated=True)
    assert completion.usage.estimated


async def test_a_local_server_needs_no_key():
    async with OpenAIServer() as server:
        model = open_at(server, "qwen3:8b")
        with anyio.fail_after(10):
            completion = await model.complete(QUESTION)
        await model.aclose()
    assert server.requests[0].body["model"] == "qwen3:8b"
    assert completion.usage.usd is None


@pytest.mark.parametrize(
    ("reply", "reason", "text"),
    [
        (Reply("text", stop="length"), "length", "text"),
        (Reply("", stop="content_filter"), "refusal", ""),
        (Reply("", refusal="I will not."), "refusal", "I will not."),
        (Reply("text", stop="tool_calls"), "end", "text"),
    ],
)
async def test_stop_reasons_are_told_apart(reply: Reply, reason: str, text: str):
    completion = await ask(reply)
    assert completion.stop_reason == reason
    assert completion.text == text


def only_knows(*fields: str) -> tuple[list[Request], type[OpenAIServer]]:
    """A server that refuses newer request fields by name, as older ones do."""
    refused: list[Request] = []

    class Older(OpenAIServer):
        def __init__(self) -> None:
            super().__init__(self.judge)

        def judge(self, request: Request) -> Answer:
            for field in ("max_completion_tokens", "stream_options"):
                if field in request.body and field not in fields:
                    refused.append(request)
                    return Failure(400, {"error": {"message": f"Unrecognized field: {field}"}})
            return Reply("ok")

    return refused, Older


async def test_an_older_server_is_asked_in_its_own_words_from_then_on():
    refused, older = only_knows()
    async with older() as server:
        model = open_at(server)
        with anyio.fail_after(10):
            first = await model.complete(QUESTION, max_tokens=50)
            again = await model.complete(QUESTION, max_tokens=60)
        await model.aclose()
    assert (first.text, again.text) == ("ok", "ok")
    assert len(refused) == 2
    bodies = [request.body for request in server.requests[2:]]
    assert [body["max_tokens"] for body in bodies] == [50, 60]
    assert all("stream_options" not in body for body in bodies)


async def test_a_limit_that_is_refused_for_its_size_does_not_change_later_requests():
    def judge(request: Request) -> Answer:
        limit = request.body.get("max_completion_tokens", request.body.get("max_tokens"))
        if limit and limit > 100:
            return Failure(400, {"error": {"message": "max_completion_tokens is too large"}})
        return Reply("ok")

    async with OpenAIServer(judge) as server:
        model = open_at(server)
        with anyio.fail_after(10):
            with pytest.raises(ModelFailed, match="too large"):
                await model.complete(QUESTION, max_tokens=1000)
            await model.complete(QUESTION, max_tokens=10)
        await model.aclose()
    assert server.requests[-1].body["max_completion_tokens"] == 10


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"code": "insufficient_quota", "message": "No."}, ModelUnavailable),
        ({"code": "invalid_api_key", "message": "No."}, ModelUnavailable),
        ({"code": None, "type": "invalid_request_error", "message": "No."}, ModelFailed),
        ({"code": 400, "type": "BadRequestError", "message": "No."}, ModelFailed),
    ],
)
async def test_an_error_in_the_middle_of_a_stream_means_what_its_code_says(
    body: dict[str, object], error: type[ModelError]
):
    stream = Raw(f"data: {json.dumps({'error': body})}\n\n".encode())
    async with OpenAIServer([stream]) as server:
        model = open_at(server)
        with anyio.fail_after(10), pytest.raises(error, match=r"No\."):
            await model.complete(QUESTION)
        await model.aclose()
        assert len(server.requests) == 1


async def test_a_used_up_quota_is_the_users_to_change_though_it_comes_as_429():
    body = {"error": {"message": "No money.", "type": "x", "code": "insufficient_quota"}}
    async with OpenAIServer([Failure(429, body)]) as server:
        model = open_at(server)
        with anyio.fail_after(10), pytest.raises(ModelUnavailable, match=r"No money.*billing"):
            await model.complete(QUESTION)
        await model.aclose()
        assert len(server.requests) == 1


async def test_an_error_in_the_form_of_ollama_is_quoted():
    answer = Failure(404, {"error": 'model "qwen9" not found, try pulling it first'})
    async with OpenAIServer([answer]) as server:
        model = open_at(server, "qwen9")
        with anyio.fail_after(10), pytest.raises(ModelUnavailable, match="try pulling it first"):
            await model.complete(QUESTION)
        await model.aclose()
