"""A scripted model behind OpenAI's chat completions, on loopback: it answers at once.

It runs in a separate process (this file, run as a program, prints its port), and its answers are
bytes that were made before they are asked for, so that it is not what is measured. What it hears
is timed here, alike for every engine.

    PUT  /SESSION                          a script: {"replies": […], "answer": …, "seconds": …}
    POST /SESSION/root/v1/chat/completions the next reply
    POST /SESSION/sub/v1/chat/completions  the answer, after so many seconds
    GET  /SESSION                          what was asked: `Heard`, as JSON
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from http.client import HTTPConnection
from itertools import count, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

ASK_SECONDS = 60
"""What the server may take to begin or end a session: to compare all requests of a long one."""

_STREAMED = re.compile(rb'"stream":\s*true')
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_USAGE = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}


@dataclass(frozen=True)
class Heard:
    """What a session's root model was asked, and when; times on the monotonic clock, in seconds."""

    asked: list[float]
    """When each request had come in whole."""
    answered: list[float]
    """When its answer had been handed to the socket."""
    sub_calls: int
    first: int
    """Bytes of the first request's messages, without the rest of the JSON around them."""
    sent: int
    """The same of all requests."""
    repeated: int
    """How many of these a prompt cache could have read: the longest common prefix of each request
    with the one before."""


NOTHING = Heard([], [], 0, 0, 0, 0)


@dataclass
class _Session:
    replies: Sequence[_Answer]
    sub_answer: _Answer
    seconds: float
    bodies: list[bytes] = field(default_factory=list[bytes])
    asked: list[float] = field(default_factory=list[float])
    answered: list[float] = field(default_factory=list[float])
    sub_calls: int = 0

    @classmethod
    def of(cls, script: dict[str, Any]) -> _Session:
        replies = [_Answer(text) for text in script["replies"]]
        return cls(replies, _Answer(script["answer"]), script["seconds"])

    def heard(self) -> Heard:
        conversations = [_conversation(body) for body in self.bodies]
        repeated = sum(_common(*pair) for pair in pairwise(conversations))
        sizes = [len(conversation) for conversation in conversations]
        first, sent = sum(sizes[:1]), sum(sizes)
        return Heard(self.asked, self.answered, self.sub_calls, first, sent, repeated)


class _Answer:
    """A completion, as whole HTTP responses: one streamed, one not."""

    def __init__(self, text: str) -> None:
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
        self._whole = _response(
            _completion("chat.completion", choice | {"message": _said(text)}, _USAGE)
        )
        chunks = [
            _completion("chat.completion.chunk", choice | {"delta": _said(text)}, None),
            _completion("chat.completion.chunk", None, _USAGE),
            b"[DONE]",
        ]
        events = b"".join(b"data: %s\n\n" % chunk for chunk in chunks)
        self._stream = _response(events, b"text/event-stream")

    def to(self, body: bytes) -> bytes:
        return self._stream if _STREAMED.search(body) else self._whole


def _said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _completion(kind: str, choice: dict[str, Any] | None, usage: dict[str, int] | None) -> bytes:
    fields = {"id": "1", "object": kind, "created": 1, "model": "scripted", "usage": usage}
    return json.dumps(fields | {"choices": [choice] if choice else []}).encode()


def _response(body: bytes, kind: bytes = b"application/json", status: bytes = b"200 OK") -> bytes:
    head = b"HTTP/1.1 %s\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n"
    return head % (status, kind, len(body)) + body


class _Connection(asyncio.Protocol):
    """One connection, kept alive. A client asks again only after the answer."""

    def __init__(self, sessions: dict[str, _Session]) -> None:
        self._sessions = sessions
        self._received = bytearray()
        self._needed = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._needed and (end := self._received.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self._received, 0, end)
            self._needed = end + 4 + (int(length[1]) if length else 0)
        if self._needed and len(self._received) >= self._needed:
            head, _, body = bytes(self._received).partition(b"\r\n\r\n")
            self._received.clear()
            self._needed = 0
            self._take(head.split(b" ", 2), body)

    def _take(self, head: list[bytes], body: bytes) -> None:
        method, (session, *path) = head[0], head[1].decode().strip("/").split("/")
        if method == b"PUT":
            self._sessions[session] = _Session.of(json.loads(body))
            self._transport.write(_response(b"{}"))
        elif session not in self._sessions:
            self._transport.write(_response(b"{}", status=b"404 Not Found"))
        elif method == b"GET":
            heard = self._sessions.pop(session).heard()
            self._transport.write(_response(json.dumps(asdict(heard)).encode()))
        elif path[0] == "root":
            self._answer_root(self._sessions[session], body)
        else:
            self._answer_sub(self._sessions[session], body)

    def _answer_root(self, session: _Session, body: bytes) -> None:
        session.asked.append(time.monotonic())
        # A client that asks more often than was planned gets the last reply again.
        number = min(len(session.bodies), len(session.replies) - 1)
        self._transport.write(session.replies[number].to(body))
        session.answered.append(time.monotonic())
        session.bodies.append(body)

    def _answer_sub(self, session: _Session, body: bytes) -> None:
        session.sub_calls += 1
        write: Callable[[bytes], None] = self._transport.write
        asyncio.get_running_loop().call_later(session.seconds, write, session.sub_answer.to(body))


def _conversation(body: bytes) -> bytes:
    messages = json.loads(body)["messages"]
    return b"\n".join(json.dumps([m["role"], m["content"]]).encode() for m in messages)


def _common(before: bytes, now: bytes) -> int:
    """The length of the longest common prefix."""
    low, high = 0, min(len(before), len(now))
    while low < high:
        middle = (low + high + 1) // 2
        if before[low:middle] == now[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class ModelServer:
    """The server's process, seen from another one."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._numbers = count(1)

    def open(self, replies: Sequence[str], answer: str, seconds: float) -> str:
        """Begin a session, in which sub-calls are answered after so many seconds: its name."""
        session = f"session{next(self._numbers)}"
        self._ask("PUT", session, {"replies": replies, "answer": answer, "seconds": seconds})
        return session

    def close(self, session: str) -> Heard:
        """End a session: what was asked in it."""
        return Heard(**self._ask("GET", session))

    def url(self, session: str, which: Literal["root", "sub"]) -> str:
        """Where one of a session's two models answers, as OpenAI's SDK wants it."""
        return f"http://127.0.0.1:{self._port}/{session}/{which}/v1"

    def _ask(self, method: str, session: str, body: object = None) -> dict[str, Any]:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=ASK_SECONDS)
        try:
            connection.request(method, f"/{session}", json.dumps(body))
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()


@contextmanager
def model_server() -> Generator[ModelServer]:
    """The server, in a separate process."""
    argv = [sys.executable, str(Path(__file__))]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield ModelServer(int(process.stdout.readline()))
        finally:
            process.terminate()


async def _serve() -> None:
    sessions: dict[str, _Session] = {}
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(sessions), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve())
