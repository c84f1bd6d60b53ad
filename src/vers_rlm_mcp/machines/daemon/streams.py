"""The streams of a job in a machine, as far as they have come and may go."""

# ruff: noqa: D102 - the methods promise what the interfaces' docstrings say

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
from anyio import lowlevel
from anyio.abc import ByteReceiveStream, ByteSendStream

from .guest.frames import CHUNK, TELL_AFTER, WINDOW
from .guest.wire import FrameError

if TYPE_CHECKING:
    from collections.abc import Callable


class Incoming(ByteReceiveStream):
    """An output, as far as it has come.

    Args:
        report_taken: Lets the daemon send so many bytes more.
    """

    def __init__(self, report_taken: Callable[[int], None]) -> None:
        self._report_taken = report_taken
        self._data = bytearray()
        self._room = WINDOW
        self._taken = 0
        self._ended = False
        self._broken = False
        self._closed = False
        self._news = anyio.Event()

    def feed(self, data: bytes) -> None:
        """Append what came; nothing ends it. Raises `FrameError` for what may not come."""
        if self._ended or len(data) > self._room:
            raise FrameError("more of a stream than was asked for")
        self._room -= len(data)
        if not data:
            self.end()
        elif self._closed:
            self._take(len(data))
        else:
            self._data += data
            self._wake()

    def end(self, *, broken: bool = False) -> None:
        """Nothing more will come: it was the end, or the connection broke."""
        if not self._ended:
            self._ended, self._broken = True, broken
            self._wake()

    async def receive(self, max_bytes: int = 65536) -> bytes:
        await lowlevel.checkpoint()
        while not self._data:
            if self._closed:
                raise anyio.ClosedResourceError
            if self._ended:
                raise anyio.BrokenResourceError if self._broken else anyio.EndOfStream
            await self._news.wait()
        chunk = bytes(self._data[:max_bytes])
        del self._data[:max_bytes]
        self._take(len(chunk))
        return chunk

    async def aclose(self) -> None:
        self.close()

    def close(self) -> None:
        """Close without waiting: what has come and what comes is thrown away."""
        self._closed = True
        self._take(len(self._data))
        self._data.clear()
        self._wake()

    def _take(self, size: int) -> None:
        self._taken += size
        if self._taken >= TELL_AFTER and not self._ended:
            self._room += self._taken
            self._report_taken(self._taken)
            self._taken = 0

    def _wake(self) -> None:
        self._news.set()
        self._news = anyio.Event()


class Outgoing(ByteSendStream):
    """The input of a job.

    Args:
        send_piece: Sends a piece, which may be empty: then it is the end.
    """

    def __init__(self, send_piece: Callable[[bytes], None]) -> None:
        self._send_piece = send_piece
        self._room = WINDOW
        self._closed = False
        self._broken = False
        self._news = anyio.Event()

    async def send(self, item: bytes) -> None:
        await lowlevel.checkpoint()
        view = memoryview(item)
        while view:
            if self._closed:
                raise anyio.ClosedResourceError
            if self._broken:
                raise anyio.BrokenResourceError
            if self._room:
                piece = bytes(view[: min(CHUNK, self._room)])
                self._room -= len(piece)
                self._send_piece(piece)
                view = view[len(piece) :]
            else:
                await self._news.wait()

    async def aclose(self) -> None:
        if not self._closed:
            self.close()
            if not self._broken:
                self._send_piece(b"")

    def taken(self, size: int) -> None:
        """The job has taken so many bytes. Raises `FrameError` where that cannot be."""
        self._room += size
        if self._room > WINDOW:
            raise FrameError("more of a stream was taken than was sent")
        self._wake()

    def break_off(self) -> None:
        """Note that no one reads the stream any more."""
        self._broken = True
        self._wake()

    def close(self) -> None:
        """Close without telling the job."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = anyio.Event()
