"""A machine that is worked with through a daemon in it: programs and files, in one connection."""

# ruff: noqa: D102 - the methods promise what the interfaces' docstrings say

from __future__ import annotations

import errno
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

import anyio
from anyio.abc import ByteReceiveStream

from vers_rlm_mcp.errors import MachineError, MachineFull, PathRefused

from ..base import Capabilities, Commit, ExitStatus, Machine, MachineInfo, Process
from ..paths import WORKSPACE, check_path

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Mapping, Sequence

    from anyio.abc import ByteSendStream

    from .conversation import Job

START_SECONDS: Final = 30.0
"""Until a command that was sent says that it runs; it takes milliseconds, and a round trip."""

CLOSE_SECONDS: Final = 5.0
"""For killing a program that is given up, which takes a round trip and some milliseconds."""

MAX_REPORT: Final = 4096
"""Bytes of a complaint or a result."""

NO_ROOM: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EAGAIN, errno.ENOMEM, errno.EMFILE}
)
"""Errors that tell of a limit of the machine."""

_REFUSAL = re.compile(r"!(\d{1,4}) (.*)", re.DOTALL)


class Link(Protocol):
    """The way to one machine, shared by all handles on it."""

    machine_id: str
    handles: int

    def check(self) -> None:
        """Raise `MachineGone` if the machine is known to be no more."""
        ...

    async def start(self, request: Mapping[str, Any]) -> Job:
        """Start a job of the machine's daemon. It is sent once, whatever becomes of it."""
        ...

    async def fate(self) -> MachineError:
        """The error for a command, or a transfer, whose connection broke."""
        ...


AnyLink = TypeVar("AnyLink", bound=Link)
LinkOf = TypeVar("LinkOf", bound=Link, contravariant=True)


class Owner(Protocol[LinkOf]):
    """What a backend does for its machines."""

    name: str

    async def commit(self, machine_id: str, intent: str | None) -> Commit:
        """Take a commit of a machine."""
        ...

    async def branch(
        self, machine_id: str, count: int, labels: Mapping[str, str]
    ) -> Sequence[Machine]:
        """Make copies of a machine, all from one instant."""
        ...

    async def info(self, machine_id: str) -> MachineInfo:
        """What is known of a machine."""
        ...

    async def delete(self, machine_id: str) -> None:
        """Delete a machine. One that is gone already is no error."""
        ...

    def release(self, link: LinkOf) -> None:
        """Take back a handle; with the last one the connection goes."""
        ...


class DaemonProcess(Process):
    """A program in a machine: a job of its daemon."""

    def __init__(self, link: Link, job: Job) -> None:
        self.stdin: ByteSendStream = job.stdin
        self.stdout: ByteReceiveStream = job.stdout
        self.stderr: ByteReceiveStream = job.stderr
        self._link = link
        self._job = job

    async def wait(self) -> ExitStatus:
        """Raises `MachineError` when the connection broke, so that nobody knows how it ended."""
        return await _end_of(self._job, self._link)

    async def kill(self) -> None:
        await self._job.kill()

    async def aclose(self) -> None:
        try:
            with anyio.move_on_after(CLOSE_SECONDS, shield=True):
                await self._job.kill()
        finally:
            self._job.close()


class FileStream(ByteReceiveStream):
    """The content of a file, as it comes."""

    def __init__(self, link: Link, job: Job, path: str) -> None:
        self._link = link
        self._job = job
        self._path = path

    async def receive(self, max_bytes: int = 65536) -> bytes:
        try:
            return await self._job.stdout.receive(max_bytes)
        except anyio.BrokenResourceError:
            raise await self._link.fate() from None
        except anyio.EndOfStream:
            if not (await _end_of(self._job, self._link)).ok:
                complaint = await _rest(self._job.stderr)
                raise MachineError(f"Reading {self._path!r} failed half-way: {complaint}") from None
            raise

    async def aclose(self) -> None:
        self._job.close()


class DaemonMachine(Machine, Generic[AnyLink]):
    """A handle on a machine. Any number of them share its connection."""

    def __init__(self, backend: Owner[AnyLink], link: AnyLink, capabilities: Capabilities) -> None:
        self.id = link.machine_id
        self.backend = backend.name
        self.capabilities = capabilities
        self._owner = backend
        self._link = link
        self._closed = False
        link.handles += 1

    async def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> DaemonProcess:
        directory = cwd or WORKSPACE
        check_path(directory)
        environment = dict(env or {})
        _check_arguments([*argv, *environment, *environment.values()])
        request = {
            "do": "run",
            "argv": list(argv),
            "env": environment,
            "cwd": directory,
            "make_cwd": directory == WORKSPACE,
        }
        return DaemonProcess(
            self._link, await self._open(request, f"start {argv[0]!r} in {directory!r}")
        )

    async def read(
        self, path: str, *, offset: int = 0, length: int | None = None
    ) -> ByteReceiveStream:
        check_path(path)
        size = -1 if length is None else length
        request = {"do": "read", "path": path, "offset": offset, "length": size}
        return FileStream(self._link, await self._open(request, f"read {path!r}"), path)

    async def write(
        self, path: str, data: bytes | AsyncIterable[bytes], *, mode: int = 0o644
    ) -> int:
        check_path(path)
        what = f"write {path!r}"
        job = await self._link.start({"do": "write", "path": path, "mode": mode})
        try:
            await _feed(job.stdin, data)
            report = await _rest(job.report)
            if not report:
                status = await _end_of(job, self._link)
                raise MachineError(f"Cannot {what}: the process that wrote ended early: {status}")
            if not report.isdecimal():
                raise _refusal(report, what)
            return int(report)
        finally:
            job.close()

    async def snapshot(self, *, intent: str | None = None) -> Commit:
        self._link.check()
        return await self._owner.commit(self.id, intent)

    async def branch(
        self, count: int = 1, *, labels: Mapping[str, str] | None = None
    ) -> Sequence[Machine]:
        self._link.check()
        return await self._owner.branch(self.id, count, labels or {})

    async def info(self) -> MachineInfo:
        self._link.check()
        return await self._owner.info(self.id)

    async def delete(self) -> None:
        await self._owner.delete(self.id)

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._owner.release(self._link)

    async def _open(self, request: Mapping[str, Any], what: str) -> Job:
        """Start a job, and wait until its program runs or its file is open."""
        job = await self._link.start(request)
        try:
            await self._opened(job, what)
        except BaseException:
            job.close()
            raise
        return job

    async def _opened(self, job: Job, what: str) -> None:
        try:
            with anyio.fail_after(START_SECONDS):
                report = await _rest(job.report)
        except TimeoutError:
            raise MachineError(
                f"Cannot {what}: machine {self.id} does not say within {START_SECONDS:g} s whether "
                "it runs. It may be overloaded; look before you try again."
            ) from None
        if job.lost:
            raise await self._link.fate()
        if report:
            raise _refusal(report, what)


async def _end_of(job: Job, link: Link) -> ExitStatus:
    status = await job.wait()
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


def _refusal(report: str, what: str) -> MachineError | PathRefused:
    """What a report of the daemon means that tells of a failure."""
    refused = _REFUSAL.fullmatch(report)
    if refused is None:
        return MachineError(f"Cannot {what}: the machine says: {report}")
    number, reason = int(refused[1]), refused[2]
    if number in NO_ROOM:
        return MachineFull(
            f"Cannot {what}: {reason}. The machine is at its limit; delete files or end programs."
        )
    return PathRefused(f"Cannot {what}: {reason}.")


def _check_arguments(words: Sequence[str]) -> None:
    if any("\0" in word for word in words):
        raise PathRefused(f"Cannot start {words[0]!r}: there is a NUL byte in what it is given.")
