"""Loopback servers that speak the providers' wire formats, for the real SDKs to talk to.

`AnthropicServer` speaks the Messages API and `OpenAIServer` chat completions, both streaming. A
server records each request as it came over the wire and answers it with what its `answers` say.
"""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType
    from typing import Self

Json = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """A request as it came over the wire; header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    raw: bytes

    @property
    def body(self) -> Json:
        return json.loads(self.raw)


@dataclass(frozen=True)
class Reply:
    """A completion. `stop` is the wire's own word, `usage` what goes to it as it stands.

    The connection is reset after `drop_after` events; the stream ends there, properly, with `cut`.
    With `hang` the reply begins and never ends. `seconds` pass before the first byte.
    """

    text: str = "ok"
    stop: str | None = None
    usage: Json | None = None
    refusal: str | None = None
    seconds: float = 0
    drop_after: int | None = None
    cut: bool = False
    hang: bool = False


@dataclass(frozen=True)
class Failure:
    """An answer that is no stream: an error status, or anything else."""

    status: int
    body: Json | str = field(default_factory=dict[str, Any])
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Raw:
    """The bytes of an event stream, as they stand."""

    stream: bytes


Answer = Reply | Failure | Raw


class ModelServer(ABC):
    """A server on a free port of 127.0.0.1, for as long as its context is open.

    `answers` is what to answer: a function of the request, or a sequence to be used in turn, whose
    last answer serves all further requests.
    """

    def __init__(
        self, answers: Callable[[Request], Answer] | Sequence[Answer] = (Reply(),)
    ) -> None:
        self.requests: list[Request] = []
        self.disconnected = asyncio.Event()
        """Set when a client goes away before its answer is complete."""
        self.stalled = asyncio.Event()
        """Set when a client is kept waiting, by `seconds` or `hang`."""
        self._answers = answers
        self._handlers: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.close()
        for handler in self._handlers:
            handler.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def port(self) -> int:
        return self._server.sockets[0].getsockname()[1]

    @property
    @abstractmethod
    def url(self) -> str:
        """The base URL as the provider's SDK wants it."""

    @abstractmethod
    def events(self, reply: Reply, request: Request) -> Iterator[bytes]:
        """The events of a reply, each encoded for the wire."""

    @abstractmethod
    def document(self, reply: Reply, request: Request) -> Json:
        """The reply to a request that asks for no stream."""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        try:
            # A client may be killed between the head of its request and the body.
            with suppress(ConnectionError, asyncio.CancelledError, asyncio.IncompleteReadError):
                while (request := await _read(reader)) is not None:
                    self.requests.append(request)
                    await self._answer_or_leave(request, reader, writer)
        finally:
            self._handlers.discard(task)
            writer.close()

    async def _answer_or_leave(
        self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Answer, unless the client goes away first (it sends nothing while it waits)."""
        answering = asyncio.ensure_future(self._answer(request, writer))
        leaving = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                self.disconnected.set()
        finally:
            leaving.cancel()
            answering.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
        answer = self._choose(request)
        if isinstance(answer, Failure):
            _write_whole(answer, writer)
        elif isinstance(answer, Raw):
            await _write_stream(writer, [answer.stream] if answer.stream else [])
        else:
            if answer.seconds:
                self.stalled.set()
                await asyncio.sleep(answer.seconds)
            await self._write_reply(answer, request, writer)
        await writer.drain()

    def _choose(self, request: Request) -> Answer:
        if callable(self._answers):
            return self._answers(request)
        return self._answers[min(len(self.requests), len(self._answers)) - 1]

    async def _write_reply(
        self, reply: Reply, request: Request, writer: asyncio.StreamWriter
    ) -> None:
        if not request.body.get("stream"):
            _write_whole(Failure(200, self.document(reply, request)), writer)
            return
        events = list(self.events(reply, request))
        if reply.hang:
            await _write_stream(writer, events[:2], end=False)
            self.stalled.set()
            await asyncio.Event().wait()
        if reply.drop_after is None:
            await _write_stream(writer, events)
            return
        await _write_stream(writer, events[: reply.drop_after], end=reply.cut)
        if not reply.cut:
            writer.transport.abort()


async def _read(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").rstrip().split("\r\n")
    method, path, _ = first.split(" ")
    pairs = (line.partition(":") for line in lines)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, path, headers, body)


def _write_whole(answer: Failure, writer: asyncio.StreamWriter) -> None:
    is_text = isinstance(answer.body, str)
    body = str(answer.body).encode() if is_text else json.dumps(answer.body).encode()
    headers = {
        "content-type": "text/html" if is_text else "application/json",
        "content-length": str(len(body)),
        **answer.headers,
    }
    writer.write(_head(answer.status, headers) + body)


async def _write_stream(
    writer: asyncio.StreamWriter, events: Sequence[bytes], *, end: bool = True
) -> None:
    writer.write(_head(200, {"content-type": "text/event-stream", "transfer-encoding": "chunked"}))
    for event in events:
        writer.write(b"%x\r\n%s\r\n" % (len(event), event))
        await writer.drain()
    if end:
        writer.write(b"0\r\n\r\n")


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} Status", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _pieces(text: str) -> list[str]:
    """A text in pieces, as a model produces it; no pieces for no text."""
    size = max(1, len(text) // 4)
    return [text[start : start + size] for start in range(0, len(text), size)]


class AnthropicServer(ModelServer):
    """Speaks the Messages API: https://platform.claude.com/docs/en/build-with-claude/streaming."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def events(self, reply: Reply, request: Request) -> Iterator[bytes]:
        usage = {"input_tokens": 10, "output_tokens": 5, **(reply.usage or {})}
        start: Json = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": request.body["model"],
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {**usage, "output_tokens": 1},
        }
        yield _event({"type": "message_start", "message": start})
        yield _event({"type": "ping"})
        for event in self._blocks(reply.text):
            yield _event(event)
        delta = {"stop_reason": reply.stop or "end_turn", "stop_sequence": None}
        spent = {"output_tokens": usage["output_tokens"]}
        yield _event({"type": "message_delta", "delta": delta, "usage": spent})
        yield _event({"type": "message_stop"})

    def document(self, reply: Reply, request: Request) -> Json:
        return {
            "type": "message",
            "model": request.body["model"],
            "content": [
                {"type": "thinking", "thinking": "", "signature": "c2ln"},
                {"type": "text", "text": reply.text},
            ],
            "stop_reason": reply.stop or "end_turn",
            "usage": {"input_tokens": 10, "output_tokens": 5, **(reply.usage or {})},
        }

    def _blocks(self, text: str) -> Iterator[Json]:
        """A block of thinking, whose text is withheld, and one of text."""
        thinking = {"type": "thinking", "thinking": "", "signature": ""}
        yield {"type": "content_block_start", "index": 0, "content_block": thinking}
        signature = {"type": "signature_delta", "signature": "c2ln"}
        yield {"type": "content_block_delta", "index": 0, "delta": signature}
        yield {"type": "content_block_stop", "index": 0}
        if not text:
            return
        block = {"type": "text", "text": ""}
        yield {"type": "content_block_start", "index": 1, "content_block": block}
        for piece in _pieces(text):
            delta = {"type": "text_delta", "text": piece}
            yield {"type": "content_block_delta", "index": 1, "delta": delta}
        yield {"type": "content_block_stop", "index": 1}


class OpenAIServer(ModelServer):
    """Speaks chat completions: https://platform.openai.com/docs/api-reference/chat-streaming.

    It reports usage when the request asks for it. With `no_usage` it never does, as some servers.
    """

    no_usage = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def events(self, reply: Reply, request: Request) -> Iterator[bytes]:
        yield self._chunk(request, {"role": "assistant", "content": ""})
        for piece in _pieces(reply.text):
            yield self._chunk(request, {"content": piece})
        if reply.refusal is not None:
            yield self._chunk(request, {"refusal": reply.refusal})
        yield self._chunk(request, {}, finish_reason=reply.stop or "stop")
        options: Json = request.body.get("stream_options", {})
        if options.get("include_usage") and not self.no_usage:
            usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
            yield self._chunk(request, None, usage={**usage, **(reply.usage or {})})
        yield b"data: [DONE]\n\n"

    def document(self, reply: Reply, request: Request) -> Json:
        message = {"role": "assistant", "content": reply.text, "refusal": reply.refusal}
        choice = {"index": 0, "message": message, "finish_reason": reply.stop or "stop"}
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        return {
            "object": "chat.completion",
            "model": request.body["model"],
            "choices": [choice],
            "usage": None if self.no_usage else {**usage, **(reply.usage or {})},
        }

    def _chunk(
        self,
        request: Request,
        delta: Json | None,
        finish_reason: str | None = None,
        usage: Json | None = None,
    ) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        chunk = {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": request.body["model"],
            "choices": [] if delta is None else [choice],
            "usage": usage,
        }
        return f"data: {json.dumps(chunk)}\n\n".encode()


def _event(data: Json) -> bytes:
    return f"event: {data['type']}\ndata: {json.dumps(data)}\n\n".encode()
