"""Receives what a provider answers with: a stream of events, one JSON document, or neither.

The SDKs expect what was asked for. Servers answer a request for a stream with a whole document, an
empty body, or the web page of a proxy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import anyio

from vers_rlm_mcp.replies import ReplyTooLarge, parse_json

from .refusals import read_body

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from typing import Self

    import httpx2

STALL_SECONDS = 600.0
"""Time limit for a stream to continue. Models think longer, but before they begin to reply."""

DRAIN_SECONDS = 1.0
"""Time limit for what follows the last event, so that the connection can be used again."""

MAX_LINE = 8 * 1024 * 1024
"""Bytes of one event."""


class WebPage(ValueError):
    """The answer is a web page. The error's text is the page's."""


class Incoming:
    """An answer with status 200, and the JSON documents in it."""

    def __init__(self, response: httpx2.Response) -> None:
        self.is_done = False
        """Whether the server has said that the stream is complete, or the answer is no stream."""
        self._response = response

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._response.aclose()

    async def documents(self) -> AsyncIterator[Mapping[str, Any]]:
        """The documents, as they arrive. Raises `ValueError` for what is neither JSON nor events.

        Raises:
            WebPage: It is a web page.
            TimeoutError: It has begun and does not continue.
        """
        pieces = aiter(self._response.aiter_bytes())
        start = b""
        while not start.strip():
            piece = await anext(pieces, None)
            if piece is None:
                return
            start += piece
        first = start.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
        if first in {b"{", b"[", b"<"}:
            self.is_done = True
            for document in _whole(start + b"".join([piece async for piece in _steady(pieces)])):
                yield document
            return
        async for line in _lines(start, pieces):
            if line.startswith(b"data:"):
                data = line.removeprefix(b"data:").strip()
                if data.startswith(b"[DONE]"):
                    self.is_done = True
                    await _drain(pieces)
                    return
                if data:
                    yield _mapping(parse_json(data))


def _whole(body: bytes) -> Iterator[Mapping[str, Any]]:
    """The documents of an answer that is no stream of events."""
    if body.lstrip()[:1] == b"<":
        raise WebPage(read_body(body).words)
    try:
        documents = parse_json(body)
    except ValueError:
        # One document on each line, as of Ollama's own API.
        documents = [parse_json(line) for line in body.splitlines() if line.strip()]
    for document in cast("list[Any]", documents if isinstance(documents, list) else [documents]):
        yield _mapping(document)


def _mapping(document: object) -> Mapping[str, Any]:
    if not isinstance(document, Mapping):
        raise ValueError("an object was expected, and something else received")  # noqa: TRY004
    return cast("Mapping[str, Any]", document)


async def _steady(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Pieces of which none may be awaited for more than `STALL_SECONDS`."""
    while True:
        with anyio.fail_after(STALL_SECONDS):
            piece = await anext(pieces, None)
        if piece is None:
            return
        yield piece


async def _lines(start: bytes, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Lines, without what ends them. JSON may hold other line separators of Unicode."""
    line = bytearray()
    piece: bytes | None = start
    while piece is not None:
        first, *rest = piece.split(b"\n")
        line += first
        if len(line) > MAX_LINE:
            raise ReplyTooLarge(f"an event of the reply has more than {MAX_LINE:,} bytes")
        if rest:
            yield bytes(line)
            for each in rest[:-1]:
                yield each
            line = bytearray(rest[-1])
        with anyio.fail_after(STALL_SECONDS):
            piece = await anext(pieces, None)
    if line:
        yield bytes(line)


async def _drain(pieces: AsyncIterator[bytes]) -> None:
    with anyio.move_on_after(DRAIN_SECONDS):
        async for _ in pieces:
            pass
