"""The host's end of a machine's daemon: all jobs that run there, over one pair of byte streams."""

from __future__ import annotations

import json
import logging
import shlex
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeAlias

import anyio

from vers_rlm_mcp.errors import BackendUnavailable

from ..base import ExitStatus
from ..code import guest_code, loader
from ..complaint import Complaint
from .guest.frames import (
    CHUNK,
    FROM_DAEMON,
    MAX_REQUEST,
    OUTPUTS,
    REPORT,
    WINDOW,
)
from .guest.wire import Decoder, Frame, FrameError, encode
from .streams import Incoming, Outgoing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from anyio.abc import ByteReceiveStream, ByteSendStream

logger = logging.getLogger(__name__)

MAX_STATUS: Final = 255
"""The largest exit code, and more than the largest number of a signal."""

NO_SUCH_PROGRAM: Final = 127
"""A shell's exit code where there is no such program."""

QUIET_SECONDS: Final = 2.0
"""A connection that was silent for this long is tried before a command is sent: whether a command
was done whose connection turns out to be lost is not known."""

CLOSE_SECONDS: Final = 5.0
"""How long closing a connection may take; milliseconds are usual."""

PING_SECONDS: Final = 5.0
"""Many round trips. After that, connecting again is faster."""

KILL_SECONDS: Final = 20.0
"""How long killing a job may take: the daemon works on it for two seconds at most. One that is
silent for longer was stopped, and its connection is given up."""


class Transport(Protocol):
    """What carries frames to a daemon: a channel of SSH, the input of a program in a VM."""

    def write(self, data: bytes) -> None:
        """Send as soon as there is room; raise `OSError` when closing."""
        ...

    def abort(self) -> None:
        """Cut it, without waiting."""
        ...

    async def wait_closed(self) -> None:
        """Wait until nothing is left of it."""
        ...


PassOn: TypeAlias = "Callable[[bytes, Sequence[int]], None]"


class Streams(NamedTuple):
    """Our ends of the streams of a job."""

    stdin: ByteSendStream
    stdout: ByteReceiveStream
    stderr: ByteReceiveStream
    report: ByteReceiveStream


class Daemon:
    """What is said to a daemon and by it. Nothing that it says is trusted.

    It lives and dies with its transport. Whatever owns that calls `connected`, `received`,
    `complained`, `ended` and `lose`.
    """

    def __init__(self) -> None:
        self.lost = False
        self.heard_at = 0.0
        """When it last said something, on the monotonic clock."""
        self._transport: Transport | None = None
        self._pass_on: PassOn | None = None
        self._decoder = Decoder(FROM_DAEMON, CHUNK)
        self._ready = anyio.Event()
        self._pong = anyio.Event()
        self._jobs: dict[int, Job] = {}
        self._last = 0
        self._put_off = b""
        """Frames that go along with the next one."""
        self._complaint = Complaint()
        self._exit_code: int | None = None

    # For the host

    async def begin(self) -> None:
        """Send the daemon's code to what `command` has started, and wait until it runs.

        Raises `BackendUnavailable` where nothing can run it, or `anyio.BrokenResourceError` when
        the connection is lost.
        """
        self.send_code(guest_code("daemon"))
        await self.ready()

    def send_code(self, code: bytes) -> None:
        """Send the code of a daemon; see `begin`."""
        self._write(code)

    async def ready(self) -> None:
        """Wait until the daemon runs; see `begin`."""
        await self._ready.wait()
        complaint = self._complaint.text
        if self._exit_code == NO_SUCH_PROGRAM:
            raise BackendUnavailable(
                f"A machine cannot be worked with when it has no python3 ({complaint}). Make one "
                "from an image that has it."
            )
        if self.lost:
            raise anyio.BrokenResourceError(complaint)

    async def is_responsive(self) -> bool:
        """Whether anything can be asked of it. A connection that was quiet for long is tried."""
        if not self.lost and time.monotonic() - self.heard_at > QUIET_SECONDS:
            with anyio.move_on_after(PING_SECONDS) as scope:
                self.send("ping")
                await self._pong.wait()
            if scope.cancelled_caught:
                self.lose()
        return not self.lost

    def start(
        self,
        request: Mapping[str, Any],
        *,
        streams: Streams | None = None,
        descriptors: Sequence[int] = (),
    ) -> Job:
        """Start a job: see `guest.daemon`. Raises `FrameError` for a request that is too large.

        Args:
            request: What to do.
            streams: Our ends of the job's streams, where the others are passed.
            descriptors: What is passed along with the request.
        """
        payload = json.dumps(request).encode()
        if len(payload) > MAX_REQUEST:
            raise FrameError(f"a request of {len(payload):,} bytes is over {MAX_REQUEST:,}")
        self._last += 1
        job = self._jobs[self._last] = Job(self, self._last, streams)
        fields = {"job": self._last, "descriptors": len(descriptors)}
        self._write(encode("start", fields, payload), descriptors)
        return job

    async def aclose(self) -> None:
        """Cut the connection, and wait until nothing is left of it."""
        self.lose()
        if self._transport:
            with anyio.move_on_after(CLOSE_SECONDS, shield=True):
                await self._transport.wait_closed()

    # For jobs

    def send(self, kind: str, payload: bytes = b"", **fields: object) -> None:
        """Send a frame; over a connection that is lost nothing is sent."""
        self._write(encode(kind, fields, payload))

    def forget(self, number: int, *, at_once: bool) -> None:
        """Stop receiving frames of a job. The daemon is told at once, or with the next frame."""
        if self._jobs.pop(number, None):
            self._put_off += encode("close", {"job": number})
            if at_once:
                self._write(b"")

    # For the transport

    def connected(self, transport: Transport, pass_on: PassOn | None = None) -> None:
        """Something can be sent: its code, or where that is there already, requests.

        Args:
            transport: What sends it.
            pass_on: Sends it along with descriptors, where that can be done.
        """
        self._transport, self._pass_on = transport, pass_on

    def received(self, data: bytes) -> None:
        """Take what the daemon wrote to its output. A frame that breaks the rules is its last."""
        self.heard_at = time.monotonic()
        try:
            for frame in self._decoder.feed(data):
                self._dispatch(frame)
        except FrameError as error:
            logger.warning("The daemon in a machine is not trusted any more: %s", error)
            self.lose()

    def complained(self, data: bytes) -> None:
        """Keep what the daemon, or a shell in its place, wrote to standard error."""
        self._complaint.add(data)

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

    def _dispatch(self, frame: Frame) -> None:
        if frame.kind == "ready":
            self._ready.set()
        elif frame.kind == "ping":
            self._pong.set()
            self._pong = anyio.Event()
        else:
            number = _integer(frame, "job", self._last)
            if job := self._jobs.get(number):
                job.receive(frame)
            elif not number:
                raise FrameError("a job that was never started")

    def _write(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        if self._transport is None or self.lost:
            return
        data, self._put_off = self._put_off + data, b""
        try:
            if self._pass_on and descriptors:
                self._pass_on(data, descriptors)
            else:
                self._transport.write(data)
        except OSError:
            self._transport.abort()  # it was closing, and reports when it has closed


class Job:
    """What a daemon was asked to do: mostly a process that it has started."""

    def __init__(self, daemon: Daemon, number: int, streams: Streams | None) -> None:
        self._daemon = daemon
        self._number = number
        self._input = Outgoing(partial(daemon.send, "data", job=number))
        self._outputs = {
            stream: Incoming(partial(self._report_taken, stream)) for stream in OUTPUTS
        }
        framed = Streams(self._input, *(self._outputs[stream] for stream in OUTPUTS))
        self.stdin, self.stdout, self.stderr, self.report = streams or framed
        self._is_framed = streams is None
        self.status: ExitStatus | None = None
        self._ended = anyio.Event()
        self._killed = anyio.Event()

    async def wait(self) -> ExitStatus | None:
        """How it ended; None when that will never be known."""
        await self._ended.wait()
        return self.status

    @property
    def has_ended(self) -> bool:
        """Whether it has ended, or nothing more can be learnt of it."""
        return self._ended.is_set()

    @property
    def lost(self) -> bool:
        """Whether it will never be known how it ended."""
        return self._ended.is_set() and self.status is None

    async def kill(self) -> bool:
        """Kill it and what it has started in the foreground, and wait until that is done.

        A daemon that does not answer is given up. Returns whether this one did.
        """
        if not self.lost:
            self._daemon.send("kill", job=self._number)
            with anyio.move_on_after(KILL_SECONDS):
                with anyio.move_on_after(QUIET_SECONDS + 0.1):
                    await self._killed.wait()
                    return True
                if await self._daemon.is_responsive():
                    await self._killed.wait()
                    return True
            self._daemon.lose()
            return False
        return True

    async def aclose(self) -> None:
        """Kill it if its process has not ended, without waiting for that; close all."""
        if not self._ended.is_set():
            self._daemon.send("kill", job=self._number)
        with anyio.CancelScope(shield=True):
            for stream in (self.stdin, self.stdout, self.stderr, self.report):
                await stream.aclose()
        # A daemon that passes on none of its streams keeps nothing of it that matters.
        self._daemon.forget(self._number, at_once=self._is_framed)

    def receive(self, frame: Frame) -> None:
        """Process a frame of this job. Raises `FrameError`."""
        if frame.kind == "data":
            stream = self._outputs.get(_integer(frame, "stream", REPORT))
            if stream is None:
                raise FrameError("output of a stream that is none")
            stream.feed(frame.payload)
        elif frame.kind == "taken":
            self._input.taken(_integer(frame, "size", WINDOW))
        elif frame.kind == "unread":
            self._input.break_off()
        elif frame.kind == "exit" and self.status is None:
            self.status = _status(frame)
            self._ended.set()
        elif frame.kind == "kill":
            self._killed.set()
        else:
            raise FrameError(f"a frame of kind {frame.kind!r} that makes no sense")

    def lose(self) -> None:
        """Nothing more can be learnt of it."""
        self._input.break_off()
        for stream in self._outputs.values():
            stream.end(broken=True)
        self._ended.set()
        self._killed.set()

    def _report_taken(self, stream: int, size: int) -> None:
        self._daemon.send("taken", job=self._number, stream=stream, size=size)


def command() -> str:
    """The line for a shell in the machine to run: it becomes a daemon."""
    return shlex.join(["exec", "python3", *loader("daemon.guest.daemon", guest_code("daemon"))])


def _integer(frame: Frame, name: str, most: int) -> int:
    value = frame.fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise FrameError(f"no valid {name!r} in a frame of kind {frame.kind!r}")
    return value


def _status(frame: Frame) -> ExitStatus:
    if frame.fields.get("signal") is None:
        return ExitStatus(_integer(frame, "code", MAX_STATUS))
    return ExitStatus(None, _integer(frame, "signal", MAX_STATUS))
