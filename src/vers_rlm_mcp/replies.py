"""Bounds on the replies of remote services: bytes after decompression, depth, numbers.

`BOUNDED` are event hooks of httpx2: they work in any of its clients, those of SDKs included. The
caller bounds the time that a successful reply may take.
"""

from __future__ import annotations

import json
import math
import zlib
from math import inf
from typing import TYPE_CHECKING, Any, Final

import anyio
import httpx2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping

MAX_BYTES: Final = 32 * 1024 * 1024
"""Of a successful reply: ten times the longest that has a use, a list of 10,000 machines."""

MAX_ERROR_BYTES: Final = 64 * 1024
"""Of any other reply. The rest is not read: the beginning says what is wrong."""

ERROR_SECONDS: Final = 10.0
"""The time to read any other reply. Its beginning has to do."""

PIECE: Final = 64 * 1024
"""Bytes that are decompressed at a time."""

MAX_DIGITS: Final = 100
"""Of a whole number; Python takes quadratic time to read one, and refuses more than 4,300."""

CODECS: Final = frozenset({"gzip", "x-gzip", "deflate"})
"""Any other is taken for none, as clients do: it is mostly a proxy's mistake."""


class ReplyTooLarge(httpx2.DecodingError):
    """A successful reply is longer than `MAX_BYTES`, and was not read to its end."""


async def _accept_codecs(request: httpx2.Request) -> None:
    request.headers["Accept-Encoding"] = "gzip, deflate"


async def _bound_body(response: httpx2.Response) -> None:
    if isinstance(response.stream, httpx2.AsyncByteStream):
        codec = response.headers.pop("Content-Encoding", "").strip().lower()
        response.stream = _Bounded(response.stream, codec in CODECS, response.is_success)


BOUNDED: Final[Mapping[str, list[Callable[[Any], Awaitable[None]]]]] = {
    "request": [_accept_codecs],
    "response": [_bound_body],
}
"""Event hooks for a client, which then raises `ReplyTooLarge` while it reads a reply."""


class _Bounded(httpx2.AsyncByteStream):
    """A reply's body, decompressed, up to its limit."""

    def __init__(
        self, stream: httpx2.AsyncByteStream, is_compressed: bool, is_success: bool
    ) -> None:
        self._stream = stream
        self._inflater = zlib.decompressobj(zlib.MAX_WBITS | 32) if is_compressed else None
        self._is_success = is_success

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = MAX_BYTES if self._is_success else MAX_ERROR_BYTES
        ends = inf if self._is_success else anyio.current_time() + ERROR_SECONDS
        pieces = aiter(self._stream)
        while True:
            data = None
            with anyio.move_on_at(ends):
                data = await anext(pieces, None)
            if data is None:
                return
            for piece in self._decompress(data):
                yield piece[:left]
                left -= len(piece)
                if left < 0:
                    if self._is_success:
                        raise ReplyTooLarge(f"the reply has more than {MAX_BYTES:,} bytes")
                    return

    async def aclose(self) -> None:
        await self._stream.aclose()

    def _decompress(self, data: bytes) -> Iterator[bytes]:
        if self._inflater is None:
            yield data
            return
        try:
            while piece := self._inflater.decompress(data, PIECE):
                yield piece
                data = self._inflater.unconsumed_tail
        except zlib.error as error:
            if self._is_success:
                raise httpx2.DecodingError(str(error)) from None


def parse_json(content: bytes) -> Any:
    """Read JSON, with or without a byte order mark.

    A number that no field of ours can have (NaN, infinite, over `MAX_DIGITS`) is read as None, as
    if it had not been given. Raises ValueError for anything else that is not JSON, or nested too
    deeply to be read.
    """
    try:
        return json.loads(
            content, parse_constant=lambda _: None, parse_float=_float, parse_int=_integer
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _float(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def _integer(text: str) -> int | None:
    return int(text) if len(text) <= MAX_DIGITS else None
