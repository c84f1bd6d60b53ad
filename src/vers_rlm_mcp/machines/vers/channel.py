"""A command in a machine, as one channel of an SSH connection: its streams and its end."""

# ruff: noqa: D102 - the methods promise what the interfaces' docstrings say

from __future__ import annotations

import signal
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import anyio
import asyncssh
from anyio import lowlevel
from anyio.abc import ByteReceiveStream, ByteSendStream

from ..base import ExitStatus

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_UNREAD: Final = 512 * 1024
"""Bytes of both outputs that wait here before the server is asked to stop sending. More than the
64 KiB that a pipe holds, so that a program which fills one pipe meanwhile does not block earlier
than it would elsewhere."""

MAX_UNSENT: Final = 256 * 1024
MAX_HEADER: Final = 4096
"""Bytes of the first line, which is a number or a sentence."""

CHUNK: Final = 64 * 1024

STDERR: Final = 1
"""The type of extended data (RFC 4254, section 5.2)."""

MSG_CHANNEL_CLOSE: Final = 97
"""RFC 4254, section 9."""

UNKNOWN_SIGNAL: Final = 0
"""OpenSSH does not say which signal it was when the standard of SSH has no name for it."""


class Incoming(ByteReceiveStream):
    """An output of a command, as far as it has come.

    Args:
        on_read: Told how many bytes were taken.
    """

    def __init__(self, on_read: Callable[[int], None]) -> None:
        self._on_read = on_read
        self._chunks: deque[bytes] = deque()
        self._ended = False
        self._broken = False
        self._closed = False
        self._news = anyio.Event()

    def feed(self, data: bytes) -> None:
        """Append what came."""
        if self._closed:
            self._on_read(len(data))
        elif data:
            self._chunks.append(data)
            self._wake()

    def end(self, *, broken: bool = False) -> None:
        """Nothing more will come: it was the end, or the connection broke."""
        if not self._ended:
            self._ended, self._broken = True, broken
            self._wake()

    async def receive(self, max_bytes: int = 65536) -> bytes:
        await lowlevel.checkpoint()
        while not self._chunks:
            if self._closed:
                raise anyio.ClosedResourceError
            if self._ended:
                raise anyio.BrokenResourceError if self._broken else anyio.EndOfStream
            await self._news.wait()
        chunk = self._chunks.popleft()
        if len(chunk) > max_bytes:
            self._chunks.appendleft(chunk[max_bytes:])
            chunk = chunk[:max_bytes]
        self._on_read(len(chunk))
        return chunk

    async def aclose(self) -> None:
        self.close()

    def close(self) -> None:
        """Close without waiting: what has come and what comes is thrown away."""
        self._closed = True
        self._on_read(sum(map(len, self._chunks)))
        self._chunks.clear()
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = anyio.Event()


class Outgoing(ByteSendStream):
    """The input of a command."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._closed = False

    async def send(self, item: bytes) -> None:
        await lowlevel.checkpoint()
        view = memoryview(item)
        while view:
            if self._closed:
                raise anyio.ClosedResourceError
            await self._channel.write(bytes(view[:CHUNK]))
            view = view[CHUNK:]

    async def aclose(self) -> None:
        if not self._closed:
            self.close()
            self._channel.write_eof()

    def close(self) -> None:
        """Close without telling the command."""
        self._closed = True


class Channel(asyncssh.SSHClientSession[bytes]):
    """What asyncssh tells of a channel, kept until somebody asks for it.

    The first line of the output is not the command's own: see `guest`.

    Args:
        on_close: Called once nothing more is to come.
    """

    def __init__(self, on_close: Callable[[], None]) -> None:
        self.requested = False
        """Whether the command may have been started: the server was asked to, or was about to."""
        self.stdout = Incoming(self._was_read)
        self.stderr = Incoming(self._was_read)
        self.stdin = Outgoing(self)
        self.status: ExitStatus | None = None
        self.closed = False
        """Whether nothing more can be learnt of the command."""
        self._on_close = on_close
        self._ended = anyio.Event()
        self._header = bytearray()
        self._has_header = anyio.Event()
        self._writable = anyio.Event()
        self._writable.set()
        self._unread = 0
        self._channel: asyncssh.SSHClientChannel[bytes] | None = None

    # What asyncssh calls.

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        self.requested = True
        self._channel = chan
        _send_nothing_after_close(chan)
        chan.set_write_buffer_limits(high=MAX_UNSENT)

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        self._unread += len(data)
        if self._unread > MAX_UNREAD and self._channel:
            self._channel.pause_reading()
        if datatype == STDERR:
            self.stderr.feed(data)
        elif self._has_header.is_set():
            self.stdout.feed(data)
        else:
            self._take_header(data)

    def eof_received(self) -> bool:
        self.stdout.end()
        self.stderr.end()
        self._has_header.set()
        return True  # the command may still read

    def exit_status_received(self, status: int) -> None:
        self._end(ExitStatus(status))

    def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:
        del core_dumped, msg, lang
        self._end(ExitStatus(None, _number(signal)))

    def connection_lost(self, exc: Exception | None) -> None:
        self.stdout.end(broken=exc is not None)
        self.stderr.end(broken=exc is not None)
        self._has_header.set()
        self._writable.set()
        self._ended.set()
        self.closed = True
        self._on_close()

    def pause_writing(self) -> None:
        if not self.closed:
            self._writable = anyio.Event()

    def resume_writing(self) -> None:
        self._writable.set()

    # What the project calls.

    async def header(self) -> str:
        """The first line; what there is of it when the output ended before."""
        await self._has_header.wait()
        return self._header.decode(errors="replace")

    async def wait(self) -> ExitStatus | None:
        """How the command ended; None when that will never be known."""
        await self._ended.wait()
        return self.status

    async def write(self, data: bytes) -> None:
        """Send input as soon as there is room. Raises `anyio.BrokenResourceError`."""
        while not self._writable.is_set():
            await self._writable.wait()  # another event, once it was paused again
        if self._channel is None or self._ended.is_set():
            raise anyio.BrokenResourceError
        try:
            self._channel.write(data)  # pyright: ignore[reportUnknownMemberType] - its type variable is lost
        except OSError:
            raise anyio.BrokenResourceError from None

    def write_eof(self) -> None:
        """End the command's input."""
        if self._channel and not self.closed:
            self._channel.write_eof()

    def close(self) -> None:
        """Give up the channel and close the streams; the command may go on without them."""
        if self._channel:
            self._channel.abort()
        self.stdin.close()
        self.stdout.close()
        self.stderr.close()
        self._writable.set()

    def _take_header(self, data: bytes) -> None:
        line, newline, rest = data.partition(b"\n")
        self._header += line
        self._was_read(len(data) - len(rest))
        if newline or len(self._header) > MAX_HEADER:
            self._has_header.set()
            self.stdout.feed(rest)

    def _end(self, status: ExitStatus) -> None:
        self.status = status
        self._writable.set()  # nobody is left to read what waits
        self._ended.set()

    def _was_read(self, size: int) -> None:
        was_full = self._unread > MAX_UNREAD
        self._unread -= size
        if was_full and self._unread <= MAX_UNREAD and self._channel:
            self._channel.resume_reading()


def _send_nothing_after_close(channel: asyncssh.SSHClientChannel[bytes]) -> None:
    """Keep asyncssh from widening the window of a channel that is closed already.

    It does so when output is read that was held back until after the server had closed the
    channel, and a server may end the whole connection for it.
    """
    send = channel.send_packet
    closed = False

    def send_packet(pkttype: int, *args: bytes) -> None:
        nonlocal closed
        if not closed:
            closed = pkttype == MSG_CHANNEL_CLOSE
            send(pkttype, *args)

    channel.send_packet = send_packet


def _number(name: str) -> int:
    """The number of a signal that SSH names without its ``SIG``."""
    known: Any = getattr(signal, f"SIG{name.partition('@')[0].removeprefix('SIG')}", None)
    return int(known) if isinstance(known, signal.Signals) else UNKNOWN_SIGNAL
