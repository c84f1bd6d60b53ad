"""The host's end of the daemon in a machine: all that runs there, over one pair of byte streams."""

from __future__ import annotations

import json
import logging
import time
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import anyio

from vers_rlm_mcp.errors import BackendUnavailable

from ..base import ExitStatus
from .guest.wire import (
    CHUNK,
    CLOSE,
    DATA,
    EXIT,
    KILL,
    NUMBER,
    OUTPUTS,
    PING,
    READY,
    START,
    STATUS,
    STDIN,
    TAKEN,
    Decoder,
    FrameError,
    encode,
)
from .streams import Incoming, Outgoing

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger(__name__)

MAX_COMPLAINT: Final = 4096
"""Bytes that are kept of what the daemon, or the shell in its place, writes to standard error."""

NO_SUCH_PROGRAM: Final = 127
"""A shell's exit code where there is no such program."""

COMMAND: Final = "exec python3 -I -S -c 'import sys; exec(sys.stdin.buffer.read({boot}))' {rest}"
"""See `guest.boot`."""

_GUEST: Final = Path(__file__).with_name("guest")
_MODULES: Final = ("wire", "files", "sessions", "daemon")
"""In the order in which they import each other."""


class Transport(Protocol):
    """What carries frames to the daemon: a channel of SSH, the input of a program in a VM."""

    def write(self, data: bytes) -> None:
        """Send, as soon as there is room; raise `OSError` when it is closing."""
        ...

    def abort(self) -> None:
        """Cut it, without waiting."""
        ...


class Daemon:
    """What is said to the daemon and by it. Nothing that it says is trusted.

    Both live and die with their transport: one that closes is a connection that is lost.
    """

    def __init__(self) -> None:
        self.lost = False
        self.heard_at = 0.0
        """When it said something, on the monotonic clock."""
        self._transport: Transport | None = None
        self._decoder = Decoder(CHUNK)
        self._ready = anyio.Event()
        self._pong = anyio.Event()
        self._jobs: dict[int, Job] = {}
        self._last = 0
        self._complaint = b""
        self._exit_code: int | None = None

    # What the project calls.

    async def begin(self) -> None:
        """Send the daemon's program, and wait until it runs.

        Raises `BackendUnavailable` where nothing can run it, or `anyio.BrokenResourceError` when
        the connection is lost.
        """
        self._write(_boot() + _modules())
        await self._ready.wait()
        complaint = self._complaint.decode(errors="replace").strip()
        if self._exit_code == NO_SUCH_PROGRAM:
            raise BackendUnavailable(
                f"A machine cannot be worked with when it has no python3 ({complaint}). Make one "
                "from an image that has it."
            )
        if self.lost:
            raise anyio.BrokenResourceError(complaint)

    async def ping(self) -> None:
        """Wait for an answer, or the end of the connection."""
        self.send(PING)
        await self._pong.wait()

    def start(self, request: Mapping[str, Any]) -> Job:
        """Start a job: see `guest.daemon`. Raises `FrameError` for a request that is too large."""
        number = self._last + 1
        frame = encode(START, number, payload=json.dumps(request).encode())
        self._last = number
        job = self._jobs[number] = Job(self, number)
        self._write(frame)
        return job

    def send(self, kind: int, job: int = 0, stream: int = 0, payload: bytes = b"") -> None:
        """Send a frame; over a connection that is lost nothing is sent."""
        self._write(encode(kind, job, stream, payload))

    def forget(self, number: int) -> None:
        """Hear nothing more of a job."""
        if self._jobs.pop(number, None):
            self.send(CLOSE, number)

    # What the transport calls.

    def connected(self, transport: Transport) -> None:
        """The daemon's program can be sent."""
        self._transport = transport

    def received(self, data: bytes) -> None:
        """Take what the daemon wrote to its output."""
        self.heard_at = time.monotonic()
        try:
            for kind, number, stream, payload in self._decoder.feed(data):
                self._hear(kind, number, stream, payload)
        except FrameError as error:
            logger.warning("The daemon in a machine is not to be trusted any more: %s", error)
            self.lose()

    def complained(self, data: bytes) -> None:
        """Keep what the daemon, or a shell in its place, wrote to standard error."""
        self._complaint = (self._complaint + data)[-MAX_COMPLAINT:]

    def ended(self, exit_code: int) -> None:
        """Note the exit code of the daemon, or of a shell in its place."""
        self._exit_code = exit_code

    def lose(self) -> None:
        """Nothing more comes: the connection was lost, or is given up."""
        if self.lost:
            return
        self.lost = True
        self._ready.set()
        self._pong.set()
        if self._transport:
            self._transport.abort()
        for job in self._jobs.values():
            job.lose()

    # What the daemon says.

    def _hear(self, kind: int, number: int, stream: int, payload: bytes) -> None:
        if kind == READY:
            self._ready.set()
        elif kind == PING:
            self._pong.set()
            self._pong = anyio.Event()
        elif job := self._jobs.get(number):
            job.hear(kind, stream, payload)
        elif not 0 < number <= self._last:
            raise FrameError("a job that was never started")

    def _write(self, frame: bytes) -> None:
        if self._transport is None or self.lost:
            return
        try:
            self._transport.write(frame)
        except OSError:
            self._transport.abort()  # it was closing, and tells when it has closed


class Job:
    """A process that the daemon has started: a program, or one that reads or writes a file."""

    def __init__(self, daemon: Daemon, number: int) -> None:
        self._daemon = daemon
        self._number = number
        self.stdin = Outgoing(partial(daemon.send, DATA, number, STDIN))
        self.stdout, self.stderr, self.report = (
            Incoming(partial(self._tell_taken, stream)) for stream in OUTPUTS
        )
        self._outputs = dict(zip(OUTPUTS, (self.stdout, self.stderr, self.report), strict=True))
        self.status: ExitStatus | None = None
        self._ended = anyio.Event()
        self._killed = anyio.Event()

    async def wait(self) -> ExitStatus | None:
        """How it ended; None when that will never be known."""
        await self._ended.wait()
        return self.status

    @property
    def lost(self) -> bool:
        """Whether it will never be known how it ended."""
        return self._ended.is_set() and self.status is None

    async def kill(self) -> None:
        """Kill its session unless its process has ended, and wait until that is done."""
        if not self._ended.is_set():
            self._daemon.send(KILL, self._number)
            await self._killed.wait()

    def close(self) -> None:
        """Kill it if it has not ended, and let go of it, without waiting."""
        if not self._ended.is_set():
            self._daemon.send(KILL, self._number)
        self._daemon.forget(self._number)
        self.stdin.close()
        for stream in self._outputs.values():
            stream.close()

    def hear(self, kind: int, stream: int, payload: bytes) -> None:
        """Take a frame about it. Raises `FrameError`."""
        if kind == DATA and stream in self._outputs:
            self._outputs[stream].feed(payload)
        elif kind == DATA and stream == STDIN and not payload:
            self.stdin.break_off()
        elif kind == TAKEN and len(payload) == NUMBER.size:
            self.stdin.taken(NUMBER.unpack(payload)[0])
        elif kind == EXIT and len(payload) == STATUS.size and self.status is None:
            code, number = STATUS.unpack(payload)
            self.status = ExitStatus(None, number) if number else ExitStatus(code)
            self._ended.set()
            self._killed.set()
        elif kind == KILL:
            self._killed.set()
        else:
            raise FrameError(f"a frame of kind {kind} that makes no sense")

    def lose(self) -> None:
        """Nothing more can be learnt of it."""
        self.stdin.break_off()
        for stream in self._outputs.values():
            stream.end(broken=True)
        self._ended.set()
        self._killed.set()

    def _tell_taken(self, stream: int, size: int) -> None:
        self._daemon.send(TAKEN, self._number, stream, NUMBER.pack(size))


def command() -> str:
    """The line for a shell in the machine to run: it becomes a daemon."""
    return COMMAND.format(boot=len(_boot()), rest=len(_modules()))


@cache
def _boot() -> bytes:
    return (_GUEST / "boot.py").read_bytes()


@cache
def _modules() -> bytes:
    return json.dumps([(name, (_GUEST / f"{name}.py").read_text()) for name in _MODULES]).encode()
