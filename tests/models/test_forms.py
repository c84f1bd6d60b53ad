"""A request that a server refuses is made in another form, which is then remembered."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio
import pytest
from servers import AnthropicServer, Failure, OpenAIServer, Raw, Reply

from vers_rlm_mcp.errors import ModelError, ModelFailed, ModelUnavailable
from vers_rlm_mcp.models import ModelOptions, open_model
from vers_rlm_mcp.values import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from servers import Answer, ModelServer, Request

    from vers_rlm_mcp.models import Model

Json = dict[str, Any]
Case: TypeAlias = "tuple[Callable[[Json], bool], Answer]"
SYSTEM = [Message("system", "You have a REPL."), Message("user", "Go.")]


def open_at(server: ModelServer, options: Mapping[str, Any] | None = None) -> Model:
    provider = "anthropic" if isinstance(server, AnthropicServer) else "openai"
    variable = provider.upper()
    env = {f"{variable}_API_KEY": "sk-1234567890", f"{variable}_BASE_URL": server.url}
    return open_model(f"{provider}:m", env, ModelOptions(fields=options or {}))


async def ask_thrice(
    server: ModelServer, options: Mapping[str, Any] | None = None, max_tokens: int | None = 50
) -> list[int]:
    """Ask with two models of one endpoint, and return how many requests each call took."""
    taken: list[int] = []
    async with server:
        for model in (open_at(server, options), open_at(server, options)):
            for _ in range(2 - len(taken)):
                before = len(server.requests)
                with anyio.fail_after(10):
                    completion = await model.complete(SYSTEM, max_tokens=max_tokens)
                assert completion.text == "ok"
                taken.append(len(server.requests) - before)
            await model.aclose()
    return taken


def error(message: str, **more: object) -> Json:
    return {"error": {"message": message, "type": "invalid_request_error", **more}}


def pydantic(field: str) -> Json:
    fault = {
        "type": "extra_forbidden",
        "loc": ["body", field],
        "msg": "Extra inputs are not permitted",
    }
    return {"detail": [fault]}


def refuses(condition: Callable[[Json], bool], answer: Answer) -> Callable[[Request], Answer]:
    """A server that answers so while a condition of the request's body holds."""
    return lambda request: answer if condition(request.body) else Reply("ok")


def streams(body: Json) -> bool:
    return bool(body.get("stream"))


def holds(field: str) -> Callable[[Json], bool]:
    return lambda body: field in body


def has_system(body: Json) -> bool:
    return body["messages"][0]["role"] == "system"


VERIFY = "Your organization must be verified to stream this model. Please go to: https://x"
ALTERNATE = "Conversation roles must alternate user/assistant/user/assistant/..."
DEVELOPER = "Developer instruction is not enabled for models/gemma-3-27b-it"


CASES: list[Case] = [
    (streams, Failure(400, error(VERIFY, param="stream", code="unsupported_value"))),
    (streams, Failure(400, error("Streaming is not supported for this model"))),
    (streams, Failure(422, pydantic("stream"))),
    (streams, Failure(400, {"detail": "stream must be false"})),
    (streams, Failure(501, error("Unsupported: stream"))),
    (has_system, Failure(400, error("System role not supported"))),
    (has_system, Failure(500, error("Jinja Exception: System role not supported"))),
    (has_system, Failure(400, error(ALTERNATE))),
    (has_system, Failure(400, [{"error": {"code": 400, "message": DEVELOPER}}])),  # pyright: ignore[reportArgumentType]
    (
        has_system,
        Failure(400, error("'messages[0].role' does not support 'system' with this model.")),
    ),
    (has_system, Failure(400, {"message": "Only user and assistant roles are supported!"})),
    *(
        (holds(field), answer)
        for field in ("stream_options", "max_completion_tokens")
        for answer in (
            Failure(400, error(f"Unrecognized request argument supplied: {field}")),
            Failure(400, error("Unknown parameter", param=field)),
            Failure(422, pydantic(field)),
            Failure(422, {"detail": f"{field}: Extra inputs are not permitted"}),
            Failure(400, {"object": "error", "message": f"[{{'loc': ('body', '{field}')}}]"}),
            Failure(400, {"error": f"unknown field {field}"}),
            Failure(400, f"json: unknown field {field}"),
            Failure(500, {"errors": [{"detail": f"unexpected keyword argument '{field}'"}]}),
        )
    ),
    (holds("stream_options"), Failure(400, {})),
    (holds("stream_options"), Failure(400, "Bad Request")),
    (holds("stream_options"), Failure(422, {"detail": "Validation error"})),
    (
        holds("stream_options"),
        Raw(b'data: {"error": "unknown: stream_options"}\n\n'),
    ),
    (
        holds("max_tokens"),
        Failure(
            400,
            error(
                "Unsupported parameter: 'max_tokens' is not supported with this model. "
                "Use 'max_completion_tokens' instead."
            ),
        ),
    ),
    (
        lambda body: "max_tokens" in body and "max_completion_tokens" in body,
        Failure(400, error("max_tokens and max_completion_tokens cannot both be set")),
    ),
]


@pytest.mark.parametrize(("condition", "answer"), CASES)
async def test_what_a_server_refuses_is_said_otherwise_from_then_on(
    condition: Callable[[Json], bool], answer: Answer
):
    server = OpenAIServer(refuses(condition, answer))
    first, second = await ask_thrice(server)
    assert first in {2, 3}
    assert second == 1
    last = server.requests[-1].body
    assert last["messages"][-1]["content"].endswith("Go.")
    assert "You have a REPL." in json.dumps(last["messages"])
    assert 50 in {last.get("max_tokens"), last.get("max_completion_tokens")}


CASES_OF_ANTHROPIC: list[Case] = [
    (streams, Failure(400, error("Streaming is not supported"))),
    (
        lambda body: "cache_control" in json.dumps(body),
        Failure(400, error("system.0.cache_control: Extra inputs are not permitted")),
    ),
    (
        lambda body: "system" in body,
        Failure(400, error("system: Input should be a valid string")),
    ),
    (
        lambda body: body["max_tokens"] > 8192,
        Failure(
            400,
            error(
                "max_tokens: 32000 > 8192, which is the maximum allowed number of output "
                "tokens for m"
            ),
        ),
    ),
]


@pytest.mark.parametrize(("condition", "answer"), CASES_OF_ANTHROPIC)
async def test_the_same_holds_for_anthropics_api(condition: Callable[[Json], bool], answer: Answer):
    server = AnthropicServer(refuses(condition, answer))
    assert await ask_thrice(server, max_tokens=None) == [2, 1]
    assert "You have a REPL." in json.dumps(server.requests[-1].body)


async def test_several_refusals_in_a_row_are_each_answered():
    def judge(request: Request) -> Answer:
        body = request.body
        for field in ("max_completion_tokens", "stream_options"):
            if field in body:
                return Failure(400, error(f"Unknown parameter: {field}"))
        if has_system(body):
            return Failure(400, error("System role not supported"))
        return Failure(400, error(VERIFY)) if streams(body) else Reply("ok")

    assert await ask_thrice(OpenAIServer(judge)) == [5, 1]


@pytest.mark.parametrize(
    "message",
    [
        "max_tokens is too large: 32000. This model supports at most 16384 completion tokens",
        "Invalid max_tokens value, the valid range of max_tokens is [1, 16384]",
        "`max_tokens` must be less than or equal to `16384`",
        "max_completion_tokens is too large",
    ],
)
async def test_a_limit_above_the_models_own_is_lowered(message: str):
    server = OpenAIServer(
        refuses(lambda body: body["max_tokens"] > 16_384, Failure(400, error(message)))
    )
    assert await ask_thrice(server, max_tokens=32_000) == [2, 1]
    assert 1024 < server.requests[-1].body["max_tokens"] <= 16_384


@pytest.mark.parametrize(
    "words",
    [
        "'max_tokens' is too large: 32000. This model's maximum context length is 8192 tokens and "
        "your request has 7000 input tokens (32000 > 8192 - 7000).",
        "This model's maximum context length is 8192 tokens. However, you requested 39000 tokens "
        "(7000 in the messages, 32000 in the completion). Please reduce the length of either.",
        "`inputs` tokens + `max_new_tokens` must be <= 8192. Given: 7000 `inputs` tokens and 32000 "
        "`max_new_tokens`",
    ],
)
async def test_a_limit_that_does_not_fit_this_prompt_is_not_lowered_for_others(words: str):
    refused = Failure(400, error(words))
    async with OpenAIServer(refuses(lambda body: body["max_tokens"] == 32_000, refused)) as server:
        model = open_at(server)
        with anyio.fail_after(10):
            await model.complete(SYSTEM, max_tokens=32_000)
            await model.complete(SYSTEM, max_tokens=9_000)
        await model.aclose()
    assert [request.body["max_tokens"] for request in server.requests] == [32_000, 1192, 9_000]


async def test_sampling_parameters_are_sent_and_left_out_if_the_model_does_not_take_them():
    options = {"temperature": 0.2, "top_p": 0.9}
    words = "Unsupported value: 'temperature' does not support 0.2 with this model. Only 1"
    server = OpenAIServer(
        refuses(lambda body: "temperature" in body, Failure(400, error(words, param="temperature")))
    )
    assert await ask_thrice(server, options) == [2, 1]
    assert [body.body.get("temperature") for body in server.requests] == [0.2, None, None]
    assert server.requests[-1].body["top_p"] == 0.9


async def test_a_sampling_parameter_with_a_wrong_value_is_the_users_to_change():
    words = "temperature: 7 must be between 0 and 2"
    async with OpenAIServer([Failure(400, error(words))]) as server:
        model = open_at(server, {"temperature": 7})
        with anyio.fail_after(10), pytest.raises(ModelFailed, match="between 0 and 2"):
            await model.complete(SYSTEM)
        await model.aclose()
    assert len(server.requests) == 1


# Answers in another form than was asked for.


async def test_a_server_that_answers_without_a_stream_is_understood():
    def judge(request: Request) -> Answer:
        return Failure(200, server.document(Reply("ok"), request))

    for server in (OpenAIServer(), AnthropicServer()):
        server._answers = judge  # pyright: ignore[reportPrivateUsage]
        assert await ask_thrice(server) == [1, 1]


@pytest.mark.parametrize(
    "stream",
    [
        b'data: {"choices": [{"delta": {"content": "ok"}}]}\n\ndata: [DONE]\n\n',
        b'data: {"choices": [{"delta": {"content": "ok"}}]}\r\n\r\ndata: [DONE]\r\n\r\n',
        b'data:{"choices":[{"delta":{"content":"ok"},"finish_reason":""}]}\ndata:[DONE]\n',
        b': ping\n\ndata: {"choices": [{"message": {"content": "ok"}}]}\n\ndata: [DONE]',
        b'data: {"choices": [{"delta": {"content": [{"type": "text", "text": "ok"}]}, '
        b'"finish_reason": "stop"}], "error": null}\n\n',
        b'data: {"choices": [{"delta": {"content": "ok"}, "finish_reason": "stop"}]}',
        b'\xef\xbb\xbf{"choices": [{"message": {"content": "ok"}}]}',
        b'{"choices": [{"delta": {"content": "o"}}]}\n{"choices": [{"delta": {"content": "k"}}]}\n',
    ],
)
async def test_streams_without_some_of_their_parts_are_understood(stream: bytes):
    assert await ask_thrice(OpenAIServer([Raw(stream)])) == [1, 1]


async def test_line_separators_and_halves_of_characters_are_kept():
    texts = ["a\u2028b\x85c", "\ud83d", "\ude42", "\ud800"]
    events = (json.dumps({"choices": [{"delta": {"content": text}}]}) for text in texts)
    raw = json.dumps({"choices": [{"delta": {"content": "\u2028"}}]}, ensure_ascii=False)
    stream = "".join(f"data: {event}\n\n" for event in [*events, raw]) + "data: [DONE]\n\n"
    async with OpenAIServer([Raw(stream.encode())]) as server:
        model = open_at(server)
        with anyio.fail_after(10):
            completion = await model.complete(SYSTEM)
        await model.aclose()
    assert completion.text == "a\u2028b\x85c🙂\ufffd\u2028"


async def test_an_empty_stream_is_asked_again_without_one_which_says_what_is_wrong():
    def judge(request: Request) -> Answer:
        return Raw(b"") if streams(request.body) else Failure(400, error("prompt is too long"))

    async with OpenAIServer(judge) as server:
        model = open_at(server)
        with anyio.fail_after(10), pytest.raises(ModelFailed, match="prompt is too long"):
            await model.complete(SYSTEM)
        await model.aclose()
    assert [streams(request.body) for request in server.requests] == [True, True, False]


async def test_a_server_whose_streams_are_empty_is_asked_without_them_from_then_on():
    server = OpenAIServer(refuses(streams, Raw(b"data: [DONE]\n\n")))
    assert await ask_thrice(server) == [3, 1]


async def test_a_web_page_is_quoted_and_not_asked_for_for_ever():
    page = "<html><head><title>Hotel</title><style>a {}</style></head><body>Log in</body></html>"
    async with OpenAIServer([Failure(200, page)]) as server:
        model = open_at(server)
        with anyio.fail_after(10), pytest.raises(ModelFailed, match=r"web page \(Hotel Log in\)"):
            await model.complete(SYSTEM)
        await model.aclose()
    assert len(server.requests) <= 5


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "No, because."}},
        {"error": "No, because."},
        {"detail": "No, because."},
        {"detail": [{"loc": ["body"], "msg": "No, because."}]},
        [{"error": {"code": 400, "message": "No, because.", "status": "INVALID_ARGUMENT"}}],
        {"error": {"error": {"message": "No, because."}}},
        {"message": "No, because."},
        {"object": "error", "message": "No, because.", "code": 400},
        {"errors": [{"title": "No, because."}]},
        {
            "error": {
                "message": "Provider returned error",
                "metadata": {"raw": '{"detail":"No, because."}'},
            }
        },
        {"error": {"message": '{"error": {"message": "No, because."}}'}},
        {"code": 1, "msg": "No, because."},
        {"error_msg": "No, because."},
        "No, because.",
        "<html><body><h1>400</h1> No, because.</body></html>",
    ],
    ids=lambda body: json.dumps(body)[:60],
)
async def test_the_providers_own_words_reach_the_user(body: Any):
    for status, kind in ((400, ModelFailed), (401, ModelUnavailable)):
        async with OpenAIServer([Failure(status, body)]) as server:
            model = open_at(server)
            with anyio.fail_after(10), pytest.raises(kind, match=r"No, because\.") as caught:
                await model.complete(SYSTEM)
            await model.aclose()
        assert len(str(caught.value)) < 300
        assert len(server.requests) == 1
    if not isinstance(body, str):
        await assert_words_in_stream(body)


async def assert_words_in_stream(body: object) -> None:
    stream = Raw(f"data: {json.dumps(body)}\n\n".encode())
    if isinstance(body, list):
        return
    async with OpenAIServer([stream]) as server:
        model = open_at(server)
        with anyio.fail_after(10), pytest.raises(ModelError, match=r"No, because\."):
            await model.complete(SYSTEM)
        await model.aclose()


async def test_a_refusal_for_good_is_not_asked_again_in_other_forms():
    for words in (
        "Your prompt violates our policy.",
        "This model's maximum context length is 8192",
    ):
        async with OpenAIServer([Failure(400, error(words))]) as server:
            model = open_at(server)
            with anyio.fail_after(10), pytest.raises(ModelFailed, match=words[:20]):
                await model.complete(SYSTEM, max_tokens=50)
            await model.aclose()
        assert len(server.requests) == 1


async def test_a_reply_that_the_provider_breaks_off_is_paid_for_three_times_at_most():
    async with OpenAIServer([Reply("half", stop="error")]) as server:
        model = open_at(server)
        with anyio.fail_after(10), pytest.raises(ModelFailed, match="broke off its reply"):
            await model.complete(SYSTEM)
        await model.aclose()
    assert len(server.requests) == 3


async def test_a_paused_reply_is_continued_with_its_own_blocks():
    def judge(request: Request) -> Answer:
        turns = request.body["messages"]
        return Reply("One, ", stop="pause_turn") if len(turns) == 1 else Reply("two.")

    async with AnthropicServer(judge) as server:
        model = open_at(server)
        with anyio.fail_after(10):
            completion = await model.complete(SYSTEM)
        await model.aclose()
    assert completion.text == "One, \ntwo."
    assert completion.usage.tokens == 30
    thinking, text = server.requests[1].body["messages"][-1]["content"]
    assert thinking == {"type": "thinking", "thinking": "", "signature": "c2ln"}
    assert text == {"type": "text", "text": "One, "}
