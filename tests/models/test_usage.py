"""Only counts that can be believed reach a budget; the rest is estimated, and says so."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from servers import AnthropicServer, OpenAIServer, Raw, Reply

from vers_rlm_mcp.models import open_model
from vers_rlm_mcp.values import Message, Usage

if TYPE_CHECKING:
    from servers import Answer, ModelServer

Json = dict[str, Any]
ASKED, REPLIED = "y" * 400, "x" * 41
ESTIMATE = Usage(100, 11, usd=None, estimated=True)
MANY = int("9" * 400)
ODD: list[object] = [
    *(None, "12", "", "many", 12.5, -1, float("nan"), float("inf"), MANY, 10**9),
    *(True, [], [12], {}, {"n": 12}, -MANY, 1e300),
]


async def usage_of(server: ModelServer, name: str) -> Usage:
    provider = name.partition(":")[0].upper()
    async with server:
        env = {f"{provider}_API_KEY": "sk-1234567890", f"{provider}_BASE_URL": server.url}
        model = open_model(name, env)
        with anyio.fail_after(10):
            completion = await model.complete([Message("user", ASKED)])
        await model.aclose()
    assert completion.text == REPLIED
    return completion.usage


async def openai_usage(*answers: Answer) -> Usage:
    return await usage_of(OpenAIServer(answers), "openai:gpt-6.2-sol")


async def anthropic_usage(*answers: Answer) -> Usage:
    return await usage_of(AnthropicServer(answers), "anthropic:claude-sonnet-5-5")


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: repr(odd)[:20])
async def test_odd_counts_are_estimated(odd: object):
    reported: Json = {"prompt_tokens": odd, "completion_tokens": odd, "total_tokens": odd}
    assert await openai_usage(Reply(REPLIED, usage=reported)) == ESTIMATE
    reported = {"input_tokens": odd, "output_tokens": odd}
    assert await anthropic_usage(Reply(REPLIED, usage=reported)) == ESTIMATE


@pytest.mark.parametrize("odd", [[], [1], "10", 12, True, -1, "{}"], ids=repr)
async def test_a_usage_that_is_no_object_is_estimated(odd: object):
    class Odd(OpenAIServer):
        def document(self, reply: Reply, request: Any) -> Json:
            return {**super().document(reply, request), "usage": odd}

    def judge(request: Any) -> Answer:
        document = Odd().document(Reply(REPLIED), request)
        return Raw(f"data: {json.dumps(document)}\n\ndata: [DONE]\n\n".encode())

    assert await usage_of(Odd(judge), "openai:m") == ESTIMATE


@pytest.mark.parametrize(
    ("reported", "usage"),
    [
        ({"prompt_tokens": None}, Usage(10, 5, usd=None)),
        ({"prompt_tokens": None, "total_tokens": None}, Usage(100, 5, usd=None, estimated=True)),
        ({"completion_tokens": None, "total_tokens": 30}, Usage(10, 20, usd=None)),
        ({"completion_tokens": "x", "total_tokens": 3}, Usage(10, 11, usd=None, estimated=True)),
        ({"prompt_tokens": 0, "completion_tokens": 0}, ESTIMATE),
        ({"prompt_tokens": 7.0}, Usage(7, 5, usd=None)),
        ({"prompt_tokens_details": None}, Usage(10, 5, usd=None)),
        ({"prompt_tokens_details": "none"}, Usage(10, 5, usd=None)),
        ({"prompt_tokens_details": {"cached_tokens": None}}, Usage(10, 5, usd=None)),
        ({"prompt_tokens_details": {"cached_tokens": -4}}, Usage(10, 5, usd=None)),
        ({"prompt_tokens_details": {"cached_tokens": 4}}, Usage(6, 5, 4, usd=None)),
        (
            {"prompt_tokens_details": {"cached_tokens": 11}},
            Usage(10, 5, usd=None, estimated=True),
        ),
        ({"prompt_cache_hit_tokens": 4, "prompt_cache_miss_tokens": 6}, Usage(6, 5, 4, usd=None)),
        ({"cached_tokens": 4}, Usage(6, 5, 4, usd=None)),
    ],
    ids=repr,
)
async def test_what_is_missing_is_derived_or_estimated(reported: Json, usage: Usage):
    answer = Reply(REPLIED, usage=reported)
    assert await usage_of(OpenAIServer([answer]), "openai:m") == usage


async def test_a_part_that_cannot_be_believed_leaves_the_rest():
    reported = {"input_tokens": -5, "cache_read_input_tokens": 7}
    usage = await anthropic_usage(Reply(REPLIED, usage=reported))
    assert usage == Usage(100, 5, 7, usd=None, estimated=True)
    reported = {"cache_read_input_tokens": "many", "cache_creation_input_tokens": None}
    usage = await anthropic_usage(Reply(REPLIED, usage=reported))
    assert (usage.tokens, usage.cache_read_tokens, usage.estimated) == (15, 0, False)


async def test_what_a_reply_cost_that_the_provider_broke_off_is_counted():
    usage = await openai_usage(Reply("half", stop="error"), Reply(REPLIED))
    assert usage.tokens == 30
    assert not usage.estimated


def test_an_estimate_makes_a_sum_one():
    assert (Usage(1) + Usage(2, estimated=True)).estimated
    assert not (Usage(1) + Usage(2)).estimated
