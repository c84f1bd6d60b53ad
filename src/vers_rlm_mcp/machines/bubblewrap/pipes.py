"""Pipes as anyio byte streams."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
from typing import Final, Self

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream
from anyio.lowlevel import checkpoint

from ..complaint import Complaint

F_SETPIPE_SZ: Final = 1031

WIDE_PIPE: Final = 1024 * 1024
"""Bytes that a pipe for file content holds: the most that an ordinary user may ask for."""

COMPLAINT_SECONDS: Final = 2.0
"""How long those that are about to end may take to do so."""


class PipeReceiveStream(ByteReceiveStream):
    """The reading end of a pipe."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """The next bytes, as soon as there are any."""
        await checkpoint()
        while True:
            if self._descriptor < 0:
                raise anyio.ClosedResourceError
            try:
                chunk = os.read(self._descriptor, max_bytes)
            except BlockingIOError:
                await anyio.wait_readable(self._descriptor)
                continue
            if not chunk:
                raise anyio.EndOfStream
            return chunk

    async def aclose(self) -> None:
        """Close the pipe; a task that waits in `receive` gets ClosedResourceError."""
        descriptor, self._descriptor = self._descriptor, -1
        await _close_gently(descriptor)

    def close(self) -> None:
        """Close at once; no task may be waiting."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class PipeSendStream(ByteSendStream):
    """The writing end of a pipe."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor

    async def send(self, item: bytes) -> None:
        """Write everything. Raises BrokenResourceError when nothing reads it any more."""
        await checkpoint()
        left = memoryview(item)
        while left:
            if self._descriptor < 0:
                raise anyio.ClosedResourceError
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:
                await anyio.wait_writable(self._descriptor)
            except BrokenPipeError as error:
                raise anyio.BrokenResourceError from error

    async def aclose(self) -> None:
        """Close the pipe: its reader gets an end of file."""
        descriptor, self._descriptor = self._descriptor, -1
        await _close_gently(descriptor)

    def close(self) -> None:
        """Close at once; no task may be waiting."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class Pipes:
    """The pipes of one request: our ends as streams, and the ends that the machine gets.

    Leaving the ``with`` closes the machine's ends, and after an error ours as well.
    """

    def __init__(self) -> None:
        self.theirs: list[int] = []
        self._ours: list[PipeReceiveStream | PipeSendStream] = []

    def incoming(self, *, wide: bool = False) -> PipeReceiveStream:
        """A pipe from the machine."""
        reading, writing = _pipe(wide=wide)
        self.theirs.append(writing)
        stream = PipeReceiveStream(reading)
        self._ours.append(stream)
        return stream

    def outgoing(self, *, wide: bool = False) -> PipeSendStream:
        """A pipe to the machine."""
        reading, writing = _pipe(wide=wide)
        self.theirs.append(reading)
        stream = PipeSendStream(writing)
        self._ours.append(stream)
        return stream

    def release(self) -> None:
        """Close the machine's ends on this side, once they have been sent."""
        while self.theirs:
            os.close(self.theirs.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.release()
        if kind:
            for stream in self._ours:
                stream.close()


def is_readable(descriptor: int) -> bool:
    """Whether there is something to read now; of a pidfd, whether its process has ended."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


async def read_text(stream: PipeReceiveStream) -> str:
    """The end of what was written to standard error, once nothing can write any more."""
    complaint = Complaint()
    with anyio.move_on_after(COMPLAINT_SECONDS):
        await complaint.read(stream)
    return complaint.text


def _pipe(*, wide: bool) -> tuple[int, int]:
    reading, writing = os.pipe2(os.O_CLOEXEC)
    if wide:
        with contextlib.suppress(OSError):  # The user's share of pipe memory may be used up.
            fcntl.fcntl(writing, F_SETPIPE_SZ, WIDE_PIPE)
    return reading, writing


async def _close_gently(descriptor: int) -> None:
    """Close once waiting tasks know: else they would wait for its number's next owner."""
    if descriptor >= 0:
        try:
            anyio.notify_closing(descriptor)
            await checkpoint()
        finally:
            os.close(descriptor)
