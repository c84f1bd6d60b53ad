"""A program that runs in a machine, and content that flows out of one."""

# ruff: noqa: D102 - the methods promise what the interface's docstrings say

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream

from vers_rlm_mcp.errors import MachineError, MachineGone

from ..base import ExitStatus, Process
from .streams import parse_number, read_reply

if TYPE_CHECKING:
    from collections.abc import Generator

    from .sandbox import Sandbox
    from .streams import PipeReceiveStream

KILL_SECONDS: Final = 5.0
"""How long killing may take when a process is closed; it goes on in the machine anyway."""


STALL_SECONDS: Final = 300.0
"""How long what serves the host in a machine may stand still. Other programs there can stop it for
ever; a snapshot that copies does so for as long as it takes."""


@contextmanager
def patience(what: str) -> Generator[None]:
    """Bound one wait for a child of PID 1. Raises MachineError when it does nothing."""
    try:
        with anyio.fail_after(STALL_SECONDS):
            yield
    except TimeoutError as error:
        raise MachineError(
            f"Cannot {what}: nothing went on for {STALL_SECONDS:g} s. A program in the machine may "
            "have stopped what serves you; go on in a new machine."
        ) from error


class BubblewrapProcess(Process):
    """A child of the machine's PID 1."""

    def __init__(
        self,
        sandbox: Sandbox,
        number: int,
        status: PipeReceiveStream,
        streams: tuple[ByteSendStream, ByteReceiveStream, ByteReceiveStream],
    ) -> None:
        self._sandbox = sandbox
        self._number = number
        self._status = status
        self._ended: ExitStatus | None = None
        self._waiting = anyio.Lock()
        self.stdin, self.stdout, self.stderr = streams

    async def wait(self) -> ExitStatus:
        async with self._waiting:
            if self._ended is None:
                self._ended = await read_status(self._status)
            return self._ended

    async def kill(self) -> None:
        await self._sandbox.request(b"kill", [b"%d" % self._number])

    async def aclose(self) -> None:
        with anyio.CancelScope(shield=True):
            if self._ended is None:
                with anyio.move_on_after(KILL_SECONDS):
                    await self._kill_quietly()
            for stream in (self.stdin, self.stdout, self.stderr, self._status):
                await stream.aclose()

    async def _kill_quietly(self) -> None:
        """Kill what still runs; a program that ended by itself may have left others running."""
        try:
            if not self._status.ready:
                await self.kill()
        except MachineGone:
            pass


class FileReceiveStream(ByteReceiveStream):
    """The content of a file, sent by a child of PID 1."""

    def __init__(self, path: str, content: PipeReceiveStream, status: PipeReceiveStream) -> None:
        self._path = path
        self._content = content
        self._status = status
        self._complete = False

    async def receive(self, max_bytes: int = 1024 * 1024) -> bytes:
        """The next bytes. Raises MachineError when reading failed half-way."""
        try:
            with patience(f"read {self._path!r}"):
                return await self._content.receive(max_bytes)
        except anyio.EndOfStream:
            if not self._complete:
                with patience(f"read {self._path!r}"):
                    self._complete = (await read_status(self._status)).ok
            if not self._complete:
                raise MachineError(f"Reading {self._path!r} failed half-way.") from None
            raise

    async def aclose(self) -> None:
        await self._status.aclose()
        await self._content.aclose()


async def read_status(stream: PipeReceiveStream) -> ExitStatus:
    """Wait for a child of PID 1 to end."""
    match await read_reply(stream):
        case [b"exit", code]:
            return ExitStatus(parse_number(code))
        case [b"signal", number]:
            return ExitStatus(None, parse_number(number))
        case _:
            raise MachineGone("The machine has ended; what ran on it is lost.")
