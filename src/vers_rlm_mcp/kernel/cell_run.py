"""One run of a cell, seen from the host: its output, its calls, its end."""

from __future__ import annotations

import codecs
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio

from vers_rlm_mcp.errors import VersRlmError, WireError

from .attachment import Lost
from .guest.frames import MAX_CALLS
from .guest_frames import integer, parse_call, parse_done
from .wire import FrameError, dump

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyio.abc import TaskGroup
    from pydantic import JsonValue

    from .attachment import Attachment
    from .base import Handler, HostCall
    from .guest_frames import Done
    from .wire import Frame

MAX_CALL_BYTES = 64 * 1024 * 1024
"""Bytes of calls that are being handled; beyond, the guest is not read until some are done."""

REPEAT_SECONDS = 0.3
"""Until a cell is interrupted again: code may swallow one interrupt by mistake."""


class Output:
    """What a cell has written, as the guest sends it: beginning, gap, end."""

    def __init__(self, limit: int, on_output: Callable[[str], None] | None) -> None:
        self._received = 0
        self._has_gap = False
        self._limit = limit
        self._pieces: list[str] = []
        self._on_output = on_output
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def text(self) -> str:
        """Everything received so far."""
        return "".join(self._pieces)

    def add(self, data: bytes, skipped: int) -> None:
        """Append a piece; `skipped` bytes before it were left out."""
        self._received += len(data)
        if self._received > self._limit:
            raise WireError(f"The kernel sent more output than the {self._limit} bytes agreed on.")
        if skipped and self._has_gap:
            raise WireError("The kernel left output out twice, where once was agreed on.")
        if skipped:
            self._has_gap = True
            self.end()
            self._append(f"\n… {skipped} bytes left out …\n")
        self._append(self._decoder.decode(data))

    def end(self) -> None:
        """Replace an incomplete character, since nothing follows to complete it."""
        self._append(self._decoder.decode(b"", final=True))

    def _append(self, text: str) -> None:
        if text:
            self._pieces.append(text)
            if self._on_output:
                self._on_output(text)


class CellRun:
    """A cell in flight.

    Args:
        attachment: The way to the kernel.
        request: The number of this run, which the kernel repeats in its frames.
        output: Receives what the cell writes.
        handler: Answers the cell's calls.
    """

    def __init__(
        self, attachment: Attachment, request: int, output: Output, handler: Handler
    ) -> None:
        self.output = output
        self._attachment = attachment
        self._request = request
        self._handler = handler
        self._handlers: TaskGroup | None = None
        """Where calls are handled; None while they are refused."""
        self._calls: dict[int, int] = {}
        """The size of each call that is being handled, by its number."""
        self._settled = anyio.Event()
        self._failure: Exception | None = None
        self._is_sent = False

    @property
    def may_have_begun(self) -> bool:
        """Whether the kernel may have begun to run the cell."""
        return self._is_sent or self._attachment.is_broken

    async def perform(self, code: bytes, cell: int) -> Done:
        """Run `code`, answering its calls, until it is over. Raises `Lost` and `WireError`."""
        done = None
        async with anyio.create_task_group() as self._handlers:
            try:
                await self._attachment.send("run", code, id=self._request, cell=cell)
                self._is_sent = True
                done = await self._until_done()
            except Exception as error:  # noqa: BLE001 - raised below, free of an exception group
                self._failure = self._failure or error
            self._handlers.cancel_scope.cancel()
        if self._failure:
            raise self._failure
        assert done
        return done

    async def interrupt(self) -> Done:
        """Interrupt the cell, repeatedly if need be, until it is over. Its calls are refused."""
        self._handlers = None
        while True:
            await self._attachment.send("interrupt", id=self._request)
            with anyio.move_on_after(REPEAT_SECONDS):
                return await self._until_done()

    async def _until_done(self) -> Done:
        while True:
            frame = await self._attachment.receive()
            if frame.kind == "call":
                await self._accept(frame)
                continue
            if integer(frame, "id") != self._request:
                raise WireError(f"The kernel sent {frame.kind!r} for a request not in flight.")
            if frame.kind == "output":
                self.output.add(frame.payload, integer(frame, "skipped"))
            elif frame.kind == "done":
                self.output.end()
                return parse_done(frame)
            else:
                raise WireError(f"The kernel sent {frame.kind!r} while a cell ran.")

    async def _accept(self, frame: Frame) -> None:
        """Have a call handled, once there is room for it."""
        number = integer(frame, "id")
        if number in self._calls or len(self._calls) >= MAX_CALLS:
            raise WireError("The kernel sent more calls at once than agreed on, or one twice.")
        if self._handlers is None:
            await self._reply(number, "the cell was interrupted", ok=False)
            return
        while self._calls and sum(self._calls.values()) + len(frame.payload) > MAX_CALL_BYTES:
            await self._settled.wait()
        self._calls[number] = len(frame.payload)
        self._handlers.start_soon(self._handle, number, parse_call(frame), self._handlers)

    async def _handle(self, number: int, call: HostCall, handlers: TaskGroup) -> None:
        try:
            value, ok = await self._handler(call), True
        except VersRlmError as error:
            value, ok = str(error), False
        except Exception as error:  # noqa: BLE001 - raised by `perform`, free of a group
            self._failure = self._failure or error
            handlers.cancel_scope.cancel()
            return
        finally:
            del self._calls[number]
            self._settled.set()
            self._settled = anyio.Event()
        with suppress(Lost):  # the task that receives frames notices it, too
            await self._reply(number, value, ok=ok)

    async def _reply(self, number: int, value: JsonValue, *, ok: bool) -> None:
        try:
            payload = dump(value) if ok else str(value).encode(errors="replace")
        except FrameError as error:
            ok, payload = False, f"the reply is too large for the kernel: {error}".encode()
        await self._attachment.send("reply", payload, id=number, ok=ok)
