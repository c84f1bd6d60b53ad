"""What every provider's model does alike, through the real SDKs and over loopback sockets."""

from __future__ import annotations

import gc
import json
import logging
import socket
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
import pytest
from servers import Answer, AnthropicServer, Failure, ModelServer, OpenAIServer, Raw, Reply, Request

from vers_rlm_mcp.errors import ModelError, ModelFailed, ModelUnavailable
from vers_rlm_mcp.models import PRICES, Model, open_model
from vers_rlm_mcp.values import Completion, Message

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = "sk-secret-0123456789abcdef"
QUESTION = [Message("system", "Be brief."), Message("user", "What is 6 x 7?")]
AT_ONCE = {"retry-after": "0"}


@dataclass(frozen=True)
class Provider:
    """One provider: how to serve it, how to open it, and how it words an error."""

    name: str
    server: type[ModelServer]
    model: str
    error: Callable[[str, str], dict[str, object]]

    def open(self, url: str, key: str = KEY) -> Model:
        variable = self.name.upper()
        env = {f"{variable}_API_KEY": key, f"{variable}_BASE_URL": url}
        return open_model(f"{self.name}:{self.model}", env)


def anthropic_error(kind: str, message: str) -> dict[str, object]:
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}


def openai_error(kind: str, message: str) -> dict[str, object]:
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


PROVIDERS = [
    Provider("anthropic", AnthropicServer, "claude-sonnet-5-5", anthropic_error),
    Provider("openai", OpenAIServer, "gpt-6.2-sol", openai_error),
]


@pytest.fixture(params=PROVIDERS, ids=lambda provider: provider.name)
def provider(request: pytest.FixtureRequest) -> Provider:
    return request.param


async def ask(provider: Provider, *answers: Answer) -> tuple[Completion, ModelServer]:
    """Put one question to a server with these answers, within 10 seconds."""
    async with provider.server(answers) as server:
        model = provider.open(server.url)
        with anyio.fail_after(10):
            completion = await model.complete(QUESTION)
        await model.aclose()
        return completion, server


async def failure(provider: Provider, *answers: Answer) -> tuple[ModelError, ModelServer]:
    """Put one question to a server with these answers, which must end in an error."""
    async with provider.server(answers) as server:
        model = provider.open(server.url)
        with anyio.fail_after(15), pytest.raises(ModelError) as caught:
            await model.complete(QUESTION)
        await model.aclose()
        return caught.value, server


async def test_a_reply_comes_back_whole_with_its_usage_and_cost(provider: Provider):
    text = "The answer is 42: *quarante-deux, ça va* 🙂\n```python\nprint(6 * 7)\n```"
    completion, server = await ask(provider, Reply(text))
    assert completion.text == text
    assert completion.stop_reason == "end"
    assert (completion.usage.input_tokens, completion.usage.output_tokens) == (10, 5)
    assert completion.usage.usd == PRICES[provider.model].usd(completion.usage)
    assert not completion.usage.estimated
    assert server.requests[0].body["model"] == provider.model


async def test_an_empty_reply_is_an_empty_text(provider: Provider):
    completion, _ = await ask(provider, Reply(""))
    assert completion.text == ""


async def test_the_key_goes_to_the_server_as_a_bearer_token(provider: Provider):
    _, server = await ask(provider, Reply())
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"


async def test_many_calls_at_once_each_get_their_own_reply(provider: Provider):
    def echo(request: Request) -> Answer:
        last = request.body["messages"][-1]["content"]
        return Reply(last if isinstance(last, str) else last[0]["text"])

    replies: dict[int, str] = {}
    async with provider.server(echo) as server:
        model = provider.open(server.url)

        async def call(number: int) -> None:
            replies[number] = (await model.complete([Message("user", f"number {number}")])).text

        with anyio.fail_after(20):
            async with anyio.create_task_group() as calls:
                for number in range(50):
                    calls.start_soon(call, number)
        await model.aclose()
    assert replies == {number: f"number {number}" for number in range(50)}


# Faults that pass.


@pytest.mark.parametrize(
    "fault",
    [
        Failure(429, {}, AT_ONCE),
        Failure(500, "<html>Internal error</html>", AT_ONCE),
        Failure(503, {}, AT_ONCE),
        Failure(529, {}, AT_ONCE),
        Failure(408, {}, AT_ONCE),
        Failure(418, {}, AT_ONCE | {"x-should-retry": "true"}),
        Failure(200, "<html>Log in to the hotel's network</html>"),
        Reply("half a rep", drop_after=3),
        Reply("half a rep", drop_after=3, cut=True),
        Raw(b"data: {not json\n\n"),
        Raw(b"event: message_start\ndata: {not json\n\n"),
        Raw(b"event: message_delta\ndata: \xff\xfe\n\n"),
        Raw(b'event: message_start\ndata: {"type": "message_start"}\n\n'),
        Raw(b'data: {"choices": [{"index": 0}]}\n\n'),
        Raw(b""),
    ],
    ids=lambda fault: repr(fault)[:60],
)
async def test_a_passing_fault_is_tried_again_and_leaves_no_trace_in_the_reply(
    provider: Provider, fault: Answer
):
    completion, server = await ask(provider, fault, Reply("All is well."))
    assert completion.text == "All is well."
    assert len(server.requests) == 2
    assert server.requests[0].raw == server.requests[1].raw


async def test_an_error_in_the_middle_of_a_stream_is_tried_again(provider: Provider):
    body = provider.error("overloaded_error", "Overloaded")
    completion, server = await ask(provider, Raw(event("error", body)), Reply("All is well."))
    assert completion.text == "All is well."
    assert len(server.requests) == 2


@pytest.mark.parametrize("provider", PROVIDERS[:1], ids=["anthropic"])
async def test_a_server_that_is_down_is_named_after_some_attempts(provider: Provider):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        model = provider.open(url)
        with anyio.fail_after(30), pytest.raises(ModelFailed) as caught:
            await model.complete(QUESTION)
        await model.aclose()
    assert url in str(caught.value)
    assert f"{provider.name.upper()}_BASE_URL" in str(caught.value)


async def test_overload_that_does_not_pass_fails_with_the_providers_words(provider: Provider):
    busy = Failure(529, provider.error("overloaded_error", "We are overloaded"), AT_ONCE)
    error, server = await failure(provider, busy)
    assert type(error) is ModelFailed
    assert "We are overloaded" in str(error)
    assert len(server.requests) == 5


async def test_a_long_retry_after_fails_at_once(provider: Provider):
    busy = Failure(429, provider.error("rate_limit_error", "Slow down"), {"retry-after": "86400"})
    error, server = await failure(provider, busy)
    assert "Slow down" in str(error)
    assert "86400 s" in str(error)
    assert len(server.requests) == 1


async def test_the_server_can_forbid_another_attempt(provider: Provider):
    error, server = await failure(provider, Failure(500, {}, {"x-should-retry": "false"}))
    assert type(error) is ModelFailed
    assert len(server.requests) == 1


# Faults that do not.


@pytest.mark.parametrize(
    ("status", "advice"),
    [(401, "_API_KEY"), (403, "_API_KEY"), (402, "billing"), (404, "_BASE_URL")],
)
async def test_what_the_user_has_to_change_is_said(provider: Provider, status: int, advice: str):
    body = provider.error("some_error", "No, because.")
    error, server = await failure(provider, Failure(status, body))
    assert isinstance(error, ModelUnavailable)
    assert "No, because." in str(error)
    assert advice in str(error)
    assert provider.model in str(error)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_refused_request_fails_at_once_with_the_providers_words(
    provider: Provider, status: int
):
    body = provider.error("invalid_request_error", "prompt is too long")
    error, server = await failure(provider, Failure(status, body))
    assert type(error) is ModelFailed
    assert "prompt is too long" in str(error)
    assert len(server.requests) == 1


async def test_a_providers_words_are_bounded(provider: Provider):
    error, _ = await failure(provider, Failure(400, "<p>" + "word " * 100_000))
    assert "word" in str(error)
    assert len(str(error)) < 1000


# Keys.


def everything_said(error: BaseException) -> str:
    return "".join([str(error), repr(error), *traceback.format_exception(error)])


@pytest.mark.parametrize(
    "answer",
    [
        Failure(401, {"error": {"message": f"Incorrect API key provided: {KEY}.", "type": "x"}}),
        Failure(400, f"Bad header: Authorization: Bearer {KEY}"),
        Failure(429, {"error": {"message": f"{KEY} is busy", "type": "x"}}, {"retry-after": "99"}),
        Failure(500, f"{KEY}", {"x-should-retry": "false"}),
    ],
)
async def test_a_key_is_in_no_error_no_log_and_no_repr(
    provider: Provider, answer: Answer, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    async with provider.server([answer]) as server:
        model = provider.open(server.url)
        with anyio.fail_after(10), pytest.raises(ModelError) as caught:
            await model.complete(QUESTION)
        said = everything_said(caught.value) + repr(model) + repr(vars(model)) + caplog.text
        await model.aclose()
    assert caplog.records
    assert KEY not in said


async def test_credentials_in_a_base_url_are_used_but_never_shown(
    provider: Provider, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    echo = "no: jane:pass word with amFuZTpwYXNzIHdvcmQ="
    fault = Failure(500, echo, {"x-should-retry": "false"})
    async with provider.server([Reply(), fault]) as server:
        model = provider.open(server.url.replace("//", "//jane:pass%20word@"))
        with anyio.fail_after(10):
            await model.complete(QUESTION)
            with pytest.raises(ModelError) as caught:
                await model.complete(QUESTION)
        said = everything_said(caught.value) + repr(vars(model)) + caplog.text
        await model.aclose()
    assert server.requests[0].headers["authorization"] == "Basic amFuZTpwYXNzIHdvcmQ="
    for secret in ("pass word", "pass%20word", "amFuZTpwYXNzIHdvcmQ=", KEY):
        assert secret not in said


# The SDKs' clients complain when they are collected half made.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_proxy_that_the_client_cannot_use_is_the_users_to_change(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ALL_PROXY", "gopher://127.0.0.1:70")
    with anyio.fail_after(10), pytest.raises(ModelUnavailable, match="proxy"):
        await provider.open("http://192.0.2.1").complete(QUESTION)
    gc.collect()


# Cancelling.


@pytest.mark.parametrize("answer", [Reply(seconds=60), Reply("half", hang=True)])
async def test_cancelling_closes_the_connection_at_once(provider: Provider, answer: Answer):
    async with provider.server([answer]) as server:
        model = provider.open(server.url)
        async with anyio.create_task_group() as calls:
            calls.start_soon(model.complete, QUESTION)
            with anyio.fail_after(10):
                await server.stalled.wait()
            calls.cancel_scope.cancel()
        with anyio.fail_after(1):
            await server.disconnected.wait()
        await model.aclose()


async def test_a_model_works_after_a_cancelled_call(provider: Provider):
    async with provider.server([Reply(seconds=60), Reply("back")]) as server:
        model = provider.open(server.url)
        async with anyio.create_task_group() as calls:
            calls.start_soon(model.complete, QUESTION)
            with anyio.fail_after(10):
                await server.stalled.wait()
            calls.cancel_scope.cancel()
        with anyio.fail_after(5):
            assert (await model.complete(QUESTION)).text == "back"
        await model.aclose()


async def test_closing_twice_or_before_the_first_call_does_nothing(provider: Provider):
    async with provider.server() as server:
        model = provider.open(server.url)
        await model.aclose()
        with anyio.fail_after(10):
            await model.complete(QUESTION)
        await model.aclose()
        await model.aclose()


def event(name: str, data: object) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()
