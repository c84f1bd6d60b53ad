"""A machine of Vers: programs and files over SSH, copies over REST."""

# ruff: noqa: D102 - the methods promise what the interfaces' docstrings say

from __future__ import annotations

import errno
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import anyio
from anyio.abc import ByteReceiveStream

from vers_rlm_mcp.errors import MachineError, MachineFull, PathRefused, VersRlmError

from ..base import Capabilities, Commit, ExitStatus, Machine, MachineInfo, Process
from ..paths import WORKSPACE, check_path
from .calls import let_finish
from .commands import kill_session, read_file, start_program, write_file

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Mapping, Sequence

    from anyio.abc import ByteSendStream

    from .backend import VersBackend
    from .channel import Channel
    from .link import Link

BACKEND: Final = "vers"

START_SECONDS: Final = 30.0
"""Until a command that was sent says that it runs; it takes milliseconds, and a round trip."""

CLOSE_SECONDS: Final = 5.0
"""For killing a command that is given up, which takes two or three round trips."""

MAX_REPORT: Final = 4096
"""Bytes of a complaint or a result."""

NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EAGAIN, errno.ENOMEM})
"""Errors that tell of a limit of the machine."""

_REFUSAL = re.compile(r"!(\d+) (.*)")


class VersProcess(Process):
    """A program in a machine: a channel, and the session that it leads there."""

    def __init__(self, link: Link, channel: Channel, session: int) -> None:
        self.stdin: ByteSendStream = channel.stdin
        self.stdout: ByteReceiveStream = channel.stdout
        self.stderr: ByteReceiveStream = channel.stderr
        self._link = link
        self._channel = channel
        self._session = session
        self._closed = False

    async def wait(self) -> ExitStatus:
        """Raises `MachineError` when the connection broke, so that nobody knows how it ended."""
        return await _end_of(self._channel, self._link)

    async def kill(self) -> None:
        # A session that has ended may have left its number to another.
        if self._channel.status is None:
            await self._link.run(kill_session(self._session))

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            with anyio.move_on_after(CLOSE_SECONDS, shield=True), suppress(VersRlmError):
                await self.kill()
        finally:
            self._channel.close()


class FileStream(ByteReceiveStream):
    """The content of a file, as it comes."""

    def __init__(self, link: Link, channel: Channel, path: str) -> None:
        self._link = link
        self._channel = channel
        self._path = path

    async def receive(self, max_bytes: int = 65536) -> bytes:
        try:
            return await self._channel.stdout.receive(max_bytes)
        except anyio.BrokenResourceError:
            raise await self._link.fate() from None
        except anyio.EndOfStream:
            if not (await _end_of(self._channel, self._link)).ok:
                complaint = await _rest(self._channel.stderr)
                raise MachineError(f"Reading {self._path!r} failed half-way: {complaint}") from None
            raise

    async def aclose(self) -> None:
        self._channel.close()


class VersMachine(Machine):
    """A handle on a machine. Any number of them share its connection."""

    backend = BACKEND

    def __init__(self, backend: VersBackend, link: Link, capabilities: Capabilities) -> None:
        self.id = link.machine_id
        self.capabilities = capabilities
        self._backend = backend
        self._link = link
        self._closed = False
        link.handles += 1

    async def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> VersProcess:
        directory = cwd or WORKSPACE
        check_path(directory)
        command = start_program(argv, env or {}, directory)

        async def start() -> VersProcess:
            channel, number = await self._open(command, f"start {argv[0]!r} in {directory!r}")
            return VersProcess(self._link, channel, number)

        # Half-way, nobody knows its number, and so it cannot be killed.
        return await let_finish(start, VersProcess.aclose, seconds=CLOSE_SECONDS)

    async def read(
        self, path: str, *, offset: int = 0, length: int | None = None
    ) -> ByteReceiveStream:
        check_path(path)
        channel, _ = await self._open(read_file(path, offset, length), f"read {path!r}")
        return FileStream(self._link, channel, path)

    async def write(
        self, path: str, data: bytes | AsyncIterable[bytes], *, mode: int = 0o644
    ) -> int:
        check_path(path)
        what = f"write {path!r}"
        channel, _ = await self._open(write_file(path, mode), what)
        try:
            await _feed(channel.stdin, data)
            report = await _rest(channel.stdout)
            if not report:
                status = await _end_of(channel, self._link)
                raise MachineError(f"Cannot {what}: the process that wrote ended early: {status}")
            return _number(report, what)
        finally:
            channel.close()

    async def snapshot(self) -> Commit:
        self._link.check()
        return await self._backend.commit(self.id)

    async def branch(
        self, count: int = 1, *, labels: Mapping[str, str] | None = None
    ) -> Sequence[VersMachine]:
        self._link.check()
        return await self._backend.branch(self.id, count, labels or {})

    async def info(self) -> MachineInfo:
        self._link.check()
        return await self._backend.info(self.id)

    async def delete(self) -> None:
        await self._backend.delete(self.id)

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._backend.release(self._link)

    async def _open(self, command: str, what: str) -> tuple[Channel, int]:
        """Start a program of `guest`, and take the number that it tells."""
        channel = await self._link.start(command)
        try:
            with anyio.fail_after(START_SECONDS):
                header = await channel.header()
            number = _number(header or await self._complaint(channel), what)
        except TimeoutError:
            channel.close()
            raise MachineError(
                f"Cannot {what}: machine {self.id} does not say within {START_SECONDS:g} s whether "
                "it runs. It may be overloaded; look before you try again."
            ) from None
        except BaseException:
            channel.close()
            raise
        return channel, number

    async def _complaint(self, channel: Channel) -> str:
        """What was said instead of a number."""
        status = await _end_of(channel, self._link)
        return await _rest(channel.stderr) or str(status)


async def _end_of(channel: Channel, link: Link) -> ExitStatus:
    status = await channel.wait()
    if status is None:
        raise await link.fate()
    return status


async def _feed(target: ByteSendStream, data: bytes | AsyncIterable[bytes]) -> None:
    """Send everything, as long as somebody takes it: why not is told in the report."""
    with suppress(anyio.BrokenResourceError):
        if isinstance(data, bytes):
            await target.send(data)
        else:
            async for chunk in data:
                await target.send(chunk)
    await target.aclose()


async def _rest(stream: ByteReceiveStream) -> str:
    """What a program has to say until it ends, as far as anyone would read it."""
    text = b""
    with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
        while len(text) < MAX_REPORT:
            text += await stream.receive(MAX_REPORT)
    return text.decode(errors="replace").strip()


def _number(line: str, what: str) -> int:
    """The number that a program of `guest` told, or the error."""
    if line.isdecimal():
        return int(line)
    refused = _REFUSAL.fullmatch(line)
    if refused is None:
        raise MachineError(f"Cannot {what}: the machine says: {line}")
    number, reason = int(refused[1]), refused[2]
    if number in NO_ROOM:
        raise MachineFull(
            f"Cannot {what}: {reason}. The machine is at its limit; delete files or end programs."
        )
    raise PathRefused(f"Cannot {what}: {reason}.")
