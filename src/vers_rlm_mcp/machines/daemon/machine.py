"""A machine that is worked with through a daemon in it: programs and files, in one connection."""

# ruff: noqa: D102 - the methods promise what the interfaces' docstrings say

from __future__ import annotations

import errno
import re
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

import anyio
from anyio.abc import ByteReceiveStream

from vers_rlm_mcp.errors import MachineError, MachineFull, PathRefused

from ..base import Capabilities, Commit, ExitStatus, Machine, MachineInfo, Process
from ..paths import WORKSPACE, check_path
from .guest.frames import COMPLETE
from .guest.wire import FrameError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Generator, Mapping, Sequence

    from anyio.abc import ByteSendStream

    from .client import Job

STALL_SECONDS: Final = 300.0
"""How long a daemon, or a process that reads or writes a file for it, may stand still. Programs of
the machine can stop that indefinitely; a snapshot that copies stops it for as long as it takes."""

CLOSE_SECONDS: Final = 5.0
"""For killing a program that is given up, which takes a round trip and some milliseconds."""

CHUNK: Final = 1024 * 1024
"""Bytes of a file that are sent, or received where nothing else is said, at a time."""

MAX_REPORT: Final = 64 * 1024
"""Bytes of a report; real ones have tens."""

MAX_REASON: Final = 4096
"""Characters of an error."""

NO_ROOM: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EAGAIN, errno.ENOMEM, errno.EMFILE}
)
"""Errors that mean that a limit of the machine is reached."""

_REFUSAL = re.compile(r"!(\d{1,4}) (.*)", re.DOTALL)


class Link(Protocol):
    """The way to one machine's daemon."""

    @property
    def machine_id(self) -> str:
        """The machine."""
        ...

    def check(self) -> object:
        """Raise `MachineGone` if the machine is known to be no more."""
        ...

    async def start(self, request: Mapping[str, Any]) -> Job:
        """Start a job of the daemon. It is sent once, whatever becomes of it."""
        ...

    async def explain_loss(self) -> MachineError:
        """The error for a command, or a transfer, whose connection broke."""
        ...


class Owner(Protocol):
    """What a backend does for its machines."""

    name: str
    capabilities: Capabilities

    async def info(self, machine_id: str) -> MachineInfo:
        """Describe a machine."""
        ...

    async def commit(self, machine_id: str, intent: str | None) -> Commit:
        """Take a commit of a machine."""
        ...

    async def branch(
        self, machine_id: str, count: int, labels: Mapping[str, str]
    ) -> Sequence[Machine]:
        """Make copies of a machine, all from one instant."""
        ...

    async def delete(self, machine_id: str) -> None:
        """Delete a machine. One that is gone already is no error."""
        ...

    def release(self, machine_id: str) -> None:
        """Take back a handle on a machine."""
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
        """Raises `MachineError` when the connection broke, so that its end is not known."""
        return await _end_of(self._job, self._link)

    async def kill(self) -> None:
        """Raises `MachineError` when the machine does not answer."""
        if not await self._job.kill():
            raise await self._link.explain_loss()

    async def aclose(self) -> None:
        if not self._job.has_ended:  # what it has left in the background lives on
            with anyio.move_on_after(CLOSE_SECONDS, shield=True):
                await self._job.kill()
        await self._job.aclose()


class FileStream(ByteReceiveStream):
    """The content of a file, as it comes."""

    def __init__(self, link: Link, job: Job, what: str) -> None:
        self._link = link
        self._job = job
        self._what = what

    async def receive(self, max_bytes: int = CHUNK) -> bytes:
        try:
            with _patience(self._what):
                return await self._job.stdout.receive(max_bytes)
        except anyio.BrokenResourceError:
            raise await self._link.explain_loss() from None
        except anyio.EndOfStream:
            with _patience(self._what):
                complete = (await _end_of(self._job, self._link)).ok
            if not complete:
                complaint = await rest(self._job.stderr)
                raise MachineError(f"Cannot {self._what} to its end: {complaint}") from None
            raise

    async def aclose(self) -> None:
        await self._job.aclose()


class DaemonMachine(Machine):
    """A handle on a machine. Any number of them share its connection."""

    def __init__(self, backend: Owner, link: Link) -> None:
        self.id = link.machine_id
        self.backend = backend.name
        self.capabilities = backend.capabilities
        self._owner = backend
        self._link = link
        self._closed = False

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
        what = f"start {argv[0]!r} in {directory!r}"
        if any("\0" in word for word in (*argv, *environment, *environment.values())):
            raise PathRefused(f"Cannot {what}: there is a NUL byte in what it is given.")
        request = {
            "do": "run",
            "argv": list(argv),
            "env": environment,
            "cwd": directory,
            "make_cwd": directory == WORKSPACE,
        }
        return DaemonProcess(self._link, await self._open(request, what))

    async def read(
        self, path: str, *, offset: int = 0, length: int | None = None
    ) -> ByteReceiveStream:
        check_path(path)
        size = -1 if length is None else length
        request = {"do": "read", "path": path, "offset": offset, "length": size}
        what = f"read {path!r}"
        return FileStream(self._link, await self._open(request, what), what)

    async def write(
        self, path: str, data: bytes | AsyncIterable[bytes], *, mode: int = 0o644
    ) -> int:
        check_path(path)
        what = f"write {path!r}"
        job = await self._start({"do": "write", "path": path, "mode": mode}, what)
        try:
            await _feed(job.stdin, data, what)
            with _patience(what):
                report = await rest(job.report)
                status = (
                    await _end_of(job, self._link) if report.isdecimal() or not report else None
                )
        finally:
            await job.aclose()  # Killed when the data's source fails: it must not write on.
        if not report:
            raise MachineError(f"Cannot {what}: what wrote it ended early: {status}")
        if not report.isdecimal():
            raise _translate_refusal(report, what)
        return int(report)

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
            self._owner.release(self.id)

    async def _start(self, request: Mapping[str, Any], what: str) -> Job:
        try:
            return await self._link.start(request)
        except FrameError as error:
            raise PathRefused(f"Cannot {what}: {error}.") from None

    async def _open(self, request: Mapping[str, Any], what: str) -> Job:
        """Start a job, and wait until its program runs or its file is open."""
        job = await self._start(request, what)
        try:
            with _patience(what):
                report = await rest(job.report)
        except BaseException:
            await job.aclose()
            raise
        if not (job.lost or report):
            return job
        await job.aclose()
        raise await self._link.explain_loss() if job.lost else _translate_refusal(report, what)


async def rest(stream: ByteReceiveStream) -> str:
    """What a stream carries until it ends, up to `MAX_REPORT`, as text."""
    text = b""
    with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
        while len(text) < MAX_REPORT:
            text += await stream.receive(MAX_REPORT)
    return text.decode(errors="replace").strip()


def parse_refusal(report: str) -> OSError | None:
    """The error that a report of the daemon describes; None when it describes none."""
    refused = _REFUSAL.fullmatch(report)
    return OSError(int(refused[1]), refused[2][:MAX_REASON]) if refused else None


def _translate_refusal(report: str, what: str) -> MachineError | PathRefused:
    error = parse_refusal(report)
    if error is None:
        return MachineError(f"Cannot {what}: the machine says: {report}")
    if error.errno in NO_ROOM:
        return MachineFull(
            f"Cannot {what}: {error.strerror}. The machine is at its limit; delete files or end "
            "programs."
        )
    return PathRefused(f"Cannot {what}: {error.strerror}.")


async def _end_of(job: Job, link: Link) -> ExitStatus:
    status = await job.wait()
    if status is None:
        raise await link.explain_loss()
    return status


async def _feed(target: ByteSendStream, data: bytes | AsyncIterable[bytes], what: str) -> None:
    """Send everything. If nothing takes it any more, the report says why."""
    with suppress(anyio.BrokenResourceError):
        async for chunk in _chunks(data) if isinstance(data, bytes) else data:
            with _patience(what):
                await target.send(chunk)
        with _patience(what):
            await target.send(COMPLETE)
    await target.aclose()


async def _chunks(data: bytes) -> AsyncGenerator[bytes]:
    for start in range(0, len(data), CHUNK):
        yield data[start : start + CHUNK]


@contextmanager
def _patience(what: str) -> Generator[None]:
    """Bound a wait for a daemon. Raises `MachineError` when it does nothing."""
    try:
        with anyio.fail_after(STALL_SECONDS):
            yield
    except TimeoutError:
        raise MachineError(
            f"Cannot {what}: nothing happened for {STALL_SECONDS:g} s. A program in the machine "
            "may have stopped what serves you; continue in a new machine."
        ) from None
