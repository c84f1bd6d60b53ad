"""Servers that limit, queue, break off or flood: calls in flight, and how much is read."""

from __future__ import annotations

import asyncio
import gzip
import resource
import time
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from servers import AnthropicServer, Failure, OpenAIServer, Raw, Reply

from vers_rlm_mcp.errors import ModelFailed
from vers_rlm_mcp.models import ModelOptions, open_model, remote
from vers_rlm_mcp.models.endpoint_memory import CallLimit
from vers_rlm_mcp.values import Message

if TYPE_CHECKING:
    from servers import Answer, ModelServer, Request

    from vers_rlm_mcp.models import Model

QUESTION = [Message("user", "go")]
MIB = 1 << 20


def open_at(server: ModelServer, max_calls: int = 32) -> Model:
    provider = "anthropic" if isinstance(server, AnthropicServer) else "openai"
    variable = provider.upper()
    env = {f"{variable}_API_KEY": "sk-1234567890", f"{variable}_BASE_URL": server.url}
    return open_model(f"{provider}:m", env, ModelOptions(max_calls=max_calls))


async def ask_many(server: ModelServer, count: int, max_calls: int = 32) -> int:
    """Ask so many questions at once. Returns how many were answered with ``ok``."""
    answers: list[str] = []
    async with server:
        model = open_at(server, max_calls)

        async def ask() -> None:
            answers.append((await model.complete(QUESTION)).text)

        with anyio.fail_after(30):
            async with anyio.create_task_group() as calls:
                for _ in range(count):
                    calls.start_soon(ask)
        await model.aclose()
    return answers.count("ok")


class Counting(OpenAIServer):
    """Takes note of how many requests are under way."""

    under_way = most = 0

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await super()._answer(request, writer)
        finally:
            self.under_way -= 1


# Rate limits and slow servers.


async def test_all_prompts_are_answered_by_a_server_with_a_rate_limit():
    times: list[float] = []

    def judge(request: Request) -> Answer:
        now = time.monotonic()
        if sum(now - each < 0.5 for each in times) >= 5:
            return Failure(429, {"error": {"message": "Slow down"}}, {"retry-after": "0.2"})
        times.append(now)
        return Reply("ok")

    server = OpenAIServer(judge)
    assert await ask_many(server, 25) == 25
    assert len(server.requests) < 200


async def test_a_wait_that_the_server_asks_for_is_held_by_all():
    times: list[float] = []
    refused = anyio.Event()

    def judge(request: Request) -> Answer:
        times.append(time.monotonic())
        refused.set()
        return Failure(429, {}, {"retry-after": "0.5"}) if len(times) == 1 else Reply("ok")

    async with OpenAIServer(judge) as server:
        model, other = open_at(server), open_at(server)
        with anyio.fail_after(10):
            async with anyio.create_task_group() as calls:
                calls.start_soon(model.complete, QUESTION)
                await refused.wait()
                await anyio.wait_all_tasks_blocked()
                await other.complete(QUESTION)
        await model.aclose()
        await other.aclose()
    first, *later = times
    assert min(later) - first > 0.45


async def test_a_wait_that_is_too_long_is_reported_and_held_by_no_one():
    async with OpenAIServer([Failure(429, {}, {"retry-after": "86400"}), Reply("ok")]) as server:
        model = open_at(server)
        with anyio.fail_after(5):
            with pytest.raises(ModelFailed, match="Try again in 86400 s"):
                await model.complete(QUESTION)
            assert (await model.complete(QUESTION)).text == "ok"
        await model.aclose()


async def test_a_prompt_that_always_fails_is_given_up_though_others_succeed():
    odd = 0

    def judge(request: Request) -> Answer:
        nonlocal odd
        if request.body["messages"][0]["content"] != "odd":
            return Reply("ok")
        odd += 1
        return Failure(500, {}) if odd % 2 else Reply("half", drop_after=3)

    async with OpenAIServer(judge) as server:
        model = open_at(server)
        with anyio.fail_after(20):
            async with anyio.create_task_group() as calls:

                async def go_on() -> None:
                    while True:
                        await model.complete(QUESTION)

                calls.start_soon(go_on)
                with pytest.raises(ModelFailed):
                    await model.complete([Message("user", "odd")])
                calls.cancel_scope.cancel()
        await model.aclose()
    assert odd <= 30


@pytest.mark.parametrize("most", [1, 3])
async def test_no_more_requests_are_made_at_once_than_the_user_allows(most: int):
    server = Counting([Reply("ok", seconds=0.02)])
    assert await ask_many(server, 12, max_calls=most) == 12
    assert server.most == most


class Interrupting(OpenAIServer):
    """Breaks off the reply under way when the next request comes, as llama-cpp-python does."""

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
        number = len(self.requests)
        events = list(self.events(Reply("ok"), request))
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
        writer.write(head + events[0])
        for event in events[1:]:
            await asyncio.sleep(0.01)
            if len(self.requests) > number:
                break
            writer.write(event)
        writer.close()


async def test_a_server_that_breaks_off_replies_for_new_requests_answers_all():
    server = Interrupting()
    assert await ask_many(server, 16) == 16
    assert len(server.requests) < 60


async def test_a_request_in_a_queue_is_waited_for_and_made_once():
    assert remote.TIMEOUT.read is None

    class OneSlot(Counting):
        slot = asyncio.Semaphore(1)

        async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
            async with self.slot:
                await super()._answer(request, writer)

    server = OneSlot([Reply("ok", seconds=0.05)])
    assert await ask_many(server, 20) == 20
    assert len(server.requests) == 20


async def test_a_stream_that_stalls_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("vers_rlm_mcp.models.receiving.STALL_SECONDS", 0.2)
    async with OpenAIServer([Reply("half", hang=True), Reply("ok")]) as server:
        model = open_at(server)
        with anyio.fail_after(10):
            assert (await model.complete(QUESTION)).text == "ok"
        await model.aclose()
        await server.disconnected.wait()


# The limit itself.


async def hold(limit: CallLimit, count: int) -> list[int]:
    with anyio.fail_after(1):
        return [await limit.acquire() for _ in range(count)]


async def test_overload_halves_the_limit_once_for_all_calls_that_were_in_flight():
    limit = CallLimit(32)
    marks = await hold(limit, 16)
    for mark in marks:
        limit.report_overload(mark, None)
        limit.release()
    await hold(limit, 8)
    with anyio.move_on_after(0.05) as scope:
        await limit.acquire()
    assert scope.cancelled_caught


async def test_the_limit_never_falls_below_one_and_recovers():
    limit = CallLimit(4)
    for _ in range(5):
        (mark,) = await hold(limit, 1)
        limit.report_overload(mark, None)
        limit.release()
    for _ in range(24):
        limit.report_success()
    await hold(limit, 4)


async def test_a_call_that_is_cancelled_in_the_queue_gives_its_place_back():
    limit = CallLimit(1)
    await hold(limit, 1)
    for _ in range(3):
        with anyio.move_on_after(0.01):
            await limit.acquire()
    limit.release()
    (mark,) = await hold(limit, 1)
    limit.report_overload(mark, 5)
    limit.release()
    with anyio.move_on_after(0.01):
        await limit.acquire()
    limit._held_until = 0  # pyright: ignore[reportPrivateUsage]
    await hold(limit, 1)


# Replies without bound.


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


class Flood(OpenAIServer):
    """Sends one piece again and again, as fast as it is read, without end."""

    def __init__(self, status: int, piece: bytes, headers: str = "") -> None:
        super().__init__()
        self.head = f"HTTP/1.1 {status} Status\r\n{headers}transfer-encoding: chunked\r\n\r\n"
        self.piece = b"%x\r\n%s\r\n" % (len(piece), piece)
        self.ended = asyncio.Event()

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(self.head.encode())
        try:
            while True:
                writer.write(self.piece)
                await writer.drain()
        finally:
            self.ended.set()


class Trickle(OpenAIServer):
    """Sends an error of which each byte takes its time."""

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Status\r\ncontent-length: 100000\r\n\r\nNo, because. ")
        while True:
            writer.write(b".")
            await writer.drain()
            await asyncio.sleep(0.02)


def bomb() -> bytes:
    return gzip.compress(b"\0" * (100 * MIB))


@pytest.mark.parametrize(
    "server",
    [
        Flood(400, b"No, because. " * 5000),
        Flood(500, b"No, because. " * 5000),
        Flood(200, b"data: " + b"x" * 65536),
        Flood(200, (b": " + b"p" * 500 + b"\n\n") * 128),
        Flood(200, b'{"choices": [' + b" " * 65536),
        Flood(200, b"<html>" + b"x" * 65536),
    ],
    ids=lambda server: repr(server.head[9:12] + server.piece[:20].decode()),
)
async def test_an_endless_answer_is_read_to_a_bound_and_the_connection_ended(server: Flood):
    before = peak()
    async with server:
        model = open_at(server)
        with anyio.fail_after(20), pytest.raises(ModelFailed):
            await model.complete(QUESTION)
        with anyio.fail_after(2):
            await server.ended.wait()
        await model.aclose()
    assert peak() - before < 200
    assert len(server.requests) <= 5


@pytest.mark.parametrize("status", [200, 400])
async def test_a_compressed_bomb_does_not_fill_the_memory(status: int):
    class Bomb(OpenAIServer):
        async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
            body = bomb()
            head = f"HTTP/1.1 {status} S\r\ncontent-encoding: gzip\r\ncontent-length: {len(body)}"
            writer.write(head.encode() + b"\r\n\r\n" + body)
            await writer.drain()

    before = peak()
    async with Bomb() as server:
        model = open_at(server)
        with anyio.fail_after(20), pytest.raises(ModelFailed):
            await model.complete(QUESTION)
        await model.aclose()
    assert peak() - before < 200
    assert len(server.requests) == 1


async def test_an_error_that_trickles_in_is_cut_off_in_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("vers_rlm_mcp.replies.ERROR_SECONDS", 0.3)
    async with Trickle() as server:
        model = open_at(server)
        with anyio.fail_after(5), pytest.raises(ModelFailed, match="No, because"):
            await model.complete(QUESTION)
        await model.aclose()


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "answer",
    [
        Failure(400, DEEP),
        Failure(400, '{"error": {"message": ' + DEEP),
        Failure(400, "\ufffd" * 100, {"content-encoding": "br"}),
        Failure(400, "not compressed", {"content-encoding": "gzip"}),
        Failure(400, "not compressed", {"content-encoding": "no such codec"}),
        Failure(200, DEEP),
        Failure(200, "not compressed", {"content-encoding": "gzip"}),
        Raw(f"data: {DEEP}\n\n".encode()),
        Raw(b'data: {"choices": ' + b'[{"delta": ' * 3000 + b"\n\n"),
        Raw(b'data: {"choices": 7}\n\n'),
        Raw(b'data: {"choices": [null]}\n\n'),
        Raw(b'data: {"choices": [{"delta": "x", "finish_reason": {}}]}\n\n'),
        Raw(b"data: [1, 2]\n\n"),
        Raw(b"data: 17\n\n"),
        Failure(400, {}, {"retry-after": "Fri, 31 Dec 99999 23:59:59 GMT"}),
        Failure(204, ""),
        Failure(301, "", {"location": "http://[::bad"}),
    ],
    ids=lambda answer: repr(answer)[:60],
)
@pytest.mark.parametrize("kind", [OpenAIServer, AnthropicServer])
async def test_an_odd_answer_is_a_failure_of_the_model(kind: Any, answer: Answer):
    async with kind([answer]) as server:
        model = open_at(server)
        with anyio.fail_after(10), pytest.raises(ModelFailed):
            await model.complete(QUESTION)
        await model.aclose()
