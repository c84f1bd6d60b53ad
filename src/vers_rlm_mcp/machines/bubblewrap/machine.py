"""A machine: what the interface asks for, carried out by the sandbox that runs it."""

# ruff: noqa: D102 - the methods promise what the interface's docstrings say

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import anyio

from vers_rlm_mcp.errors import MachineError, MachineFull, MachineGone, PathRefused

from ..base import Capabilities, Commit, Machine, MachineInfo
from ..paths import WORKSPACE, check_path
from . import identity
from .process import KILL_SECONDS, BubblewrapProcess, FileReceiveStream, patience
from .sandbox import check_reply
from .store import BACKEND
from .streams import Pipes, parse_number, read_reply

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Mapping, Sequence

    from anyio.abc import ByteReceiveStream

    from .backend import BubblewrapBackend
    from .running import RunningMachine
    from .streams import PipeReceiveStream, PipeSendStream

ENVIRONMENT: Final[Mapping[str, str]] = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "LOGNAME": "root",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "SHELL": "/bin/sh",
    "TERM": "dumb",
    "USER": "root",
}
"""What a program in a machine starts with; nothing comes from the host."""

CHUNK: Final = 1024 * 1024
"""Bytes that are written at a time: what a wide pipe holds."""

NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EAGAIN, errno.ENOMEM})
"""Errors that tell of a limit of the machine."""


class BubblewrapMachine(Machine):
    """A handle on a machine. Any number of them may share what runs."""

    backend = BACKEND

    def __init__(
        self, backend: BubblewrapBackend, running: RunningMachine, capabilities: Capabilities
    ) -> None:
        self.id = running.id
        self.capabilities = capabilities
        self._backend = backend
        self._running = running

    async def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> BubblewrapProcess:
        directory = cwd or WORKSPACE
        what = f"start {argv[0]!r} in {directory!r}"
        variables = {**ENVIRONMENT, **self._running.environment, **(env or {})}
        fields = [
            directory,
            str(len(argv)),
            *argv,
            *(part for pair in variables.items() for part in pair),
        ]
        with Pipes() as pipes:
            status, report = pipes.incoming(), pipes.incoming()
            streams = pipes.outgoing(), pipes.incoming(), pipes.incoming()
            identity.give(pipes.theirs[-len(streams) :])
            number = await self._start(b"run", fields, pipes, what)
            await self._reported(report, number, what)
        return BubblewrapProcess(self._running.sandbox, number, status, streams)

    async def read(
        self, path: str, *, offset: int = 0, length: int | None = None
    ) -> ByteReceiveStream:
        check_path(path)
        what = f"read {path!r}"
        fields = [path, str(offset), str(-1 if length is None else length)]
        with Pipes() as pipes:
            status, report = pipes.incoming(), pipes.incoming()
            pipes.nothing()
            content = pipes.incoming(wide=True)
            pipes.nothing()
            number = await self._start(b"read", fields, pipes, what)
            await self._reported(report, number, what)
        return FileReceiveStream(path, content, status)

    async def write(
        self, path: str, data: bytes | AsyncIterable[bytes], *, mode: int = 0o644
    ) -> int:
        check_path(path)
        what = f"write {path!r}"
        with Pipes() as pipes:
            status, report = pipes.incoming(), pipes.incoming()
            content = pipes.outgoing(wide=True)
            pipes.nothing()
            pipes.nothing()
            number = await self._start(b"write", [path, str(mode)], pipes, what)
        writer = BubblewrapProcess(self._running.sandbox, number, status, (content, report, report))
        async with writer:  # Killed when the data's source fails: it must not go on writing.
            await _feed(content, data, what)
            with patience(what):
                written = _refuse(await read_reply(report), what)
                await writer.wait()  # Else its process may stand in the way of a snapshot.
            if not written:
                raise MachineError(f"Cannot {what}: the process that wrote was killed.")
            return parse_number(written[0])

    async def snapshot(self, *, intent: str | None = None) -> Commit:
        return await self._backend.commit(self._running, intent)

    async def branch(
        self, count: int = 1, *, labels: Mapping[str, str] | None = None
    ) -> Sequence[BubblewrapMachine]:
        return await self._backend.fork(self._running, count, labels or {})

    async def info(self) -> MachineInfo:
        self._running.check()
        return self._running.record.info(running=True)

    async def delete(self) -> None:
        await self._backend.delete(self.id)

    async def aclose(self) -> None:
        """Other handles may be in use: the machine runs until it is deleted or we end."""

    async def _start(self, operation: bytes, fields: Sequence[str], pipes: Pipes, what: str) -> int:
        """Start a child of PID 1 and return its number."""
        if any("\0" in field for field in fields):
            raise PathRefused(f"Cannot {what}: there is a NUL byte in it.")
        sandbox = self._running.check()
        try:
            async with self._running.gate:
                reply = await sandbox.request(
                    operation, [os.fsencode(field) for field in fields], pipes.theirs
                )
        except OSError as error:
            raise translated(error, what) from error
        pipes.release()
        return parse_number(reply[0]) if reply else 0

    async def _reported(self, report: PipeReceiveStream, number: int, what: str) -> None:
        """Wait for a child to tell that it has begun; it is killed if nobody waits any longer."""
        try:
            with patience(what):
                fields = await read_reply(report)
        except BaseException:
            with anyio.move_on_after(KILL_SECONDS, shield=True), suppress(MachineGone):
                await self._running.sandbox.request(b"kill", [b"%d" % number])
            raise
        finally:
            report.close()
        _refuse(fields, what)


def translated(error: OSError, what: str) -> PathRefused | MachineFull:
    """An error that PID 1 or one of its children reported, as the interface has it."""
    if error.errno in NO_ROOM:
        reason = error.strerror or "a limit was hit"
        return MachineFull(
            f"Cannot {what}: {reason}. The machine is at its limit; delete files or end programs."
        )
    return PathRefused(f"Cannot {what}: {error.strerror}.")


def _refuse(fields: list[bytes], what: str) -> list[bytes]:
    """The content of a child's report, which is empty when all is well."""
    try:
        return check_reply(fields) if fields else []
    except OSError as error:
        raise translated(error, what) from error


async def _feed(target: PipeSendStream, data: bytes | AsyncIterable[bytes], what: str) -> None:
    """Send everything, as long as somebody takes it: why not is told in the report."""
    try:
        async for chunk in _chunks(data) if isinstance(data, bytes) else data:
            with patience(what):
                await target.send(chunk)
    except anyio.BrokenResourceError:
        pass
    await target.aclose()


async def _chunks(data: bytes) -> AsyncGenerator[bytes]:
    for start in range(0, len(data), CHUNK):
        yield data[start : start + CHUNK]
