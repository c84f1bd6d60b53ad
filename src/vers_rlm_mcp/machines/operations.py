"""Bounded commands and file transfers, on any machine."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import anyio
from anyio.streams.file import FileReadStream

from vers_rlm_mcp.errors import InputError, MachineError, PathRefused, VersRlmError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence
    from pathlib import Path

    from anyio.abc import ByteReceiveStream, ByteSendStream

    from .base import ExitStatus, Machine, Process

OUTPUT_LIMIT: Final = 1024 * 1024
"""Bytes kept of each output stream by default: far more than a model reads."""

CHUNK: Final = 64 * 1024
"""Bytes moved at a time: the capacity of a pipe on Linux."""

ANSWER_SECONDS: Final = 20.0
"""How long a machine may take before it begins with what is asked, if that has a shorter time limit
itself: it may have to be made or woken first."""

ARGUMENT_LIMIT: Final = 128 * 1024 - 1
"""Bytes that Linux accepts in one argument (MAX_ARG_STRLEN less the terminating zero)."""

IDLE_SECONDS: Final = 0.1
"""Seconds of silence after which output that a background process holds open is abandoned."""

IDLE_ROUNDS: Final = 20
"""How often such output may break its silence. A noisy background process costs 2 s at most."""

SHELL_SCRIPT: Final = (
    'if command -v bash >/dev/null; then exec bash -c -- "$1"; else exec sh -c -- "$1"; fi'
)


@dataclass(frozen=True, slots=True)
class Captured:
    """The output of a stream: all of it, or its beginning and its end."""

    head: bytes
    tail: bytes
    total: int
    """Bytes that the stream carried, including those that were not kept."""

    @property
    def data(self) -> bytes:
        """The bytes that were kept, without a mark at the gap."""
        return self.head + self.tail

    @property
    def omitted(self) -> int:
        """The number of bytes between head and tail that were not kept."""
        return self.total - len(self.head) - len(self.tail)

    @property
    def text(self) -> str:
        """The output as text. Bytes that are not UTF-8 are replaced, and a gap is marked."""
        if not self.omitted:
            return self.data.decode(errors="replace")
        gap = f"\n… {self.omitted:,} bytes left out …\n"
        return self.head.decode(errors="replace") + gap + self.tail.decode(errors="replace")


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandResult:
    """The outcome of a command."""

    status: ExitStatus | None
    """None if it took longer than its time-out and was killed."""
    stdout: Captured
    stderr: Captured
    seconds: float

    @property
    def exit_code(self) -> int | None:
        """As a shell reports it: 128 + N after signal N. None after a time-out."""
        if self.status is None or self.status.signal is None:
            return self.status and self.status.code
        return 128 + self.status.signal


def shell(command: str) -> Sequence[str]:
    """The arguments that run `command` in the machine's bash or, if it has none, its sh."""
    return ("sh", "-c", SHELL_SCRIPT, "sh", command)


async def run_command(
    machine: Machine,
    command: str | Sequence[str],
    *,
    timeout: float,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    limit: int = OUTPUT_LIMIT,
) -> CommandResult:
    """Run a command to its end and keep a bounded part of its output.

    The command has ended when its own process has. A process that it left in the background keeps
    running and is not waited for, even if it holds the output open. On a time-out or a
    cancellation the command is killed together with what it started.

    Args:
        machine: Where to run it.
        command: A program with its arguments or, as one string, a command for the shell.
        timeout: Seconds after which it is killed.
        stdin: Its standard input.
        env: Variables to add to the machine's own.
        cwd: The working directory, ``/workspace`` by default.
        limit: Bytes to keep of each output, half from the beginning and half from the end.

    Raises:
        InputError: The command is longer than Linux accepts, or holds a NUL.
        PathRefused: There is no such program or working directory.
        MachineGone: The machine was deleted.
        MachineError: The machine does not answer.
    """
    argv = shell(command) if isinstance(command, str) else command
    _check_arguments(argv)
    started = time.monotonic()
    with expect_answer(timeout):
        process = await machine.spawn(argv, env=env, cwd=cwd)
    async with process:
        status, stdout, stderr = await _communicate(process, stdin, timeout, limit)
    return CommandResult(
        status=status, stdout=stdout, stderr=stderr, seconds=time.monotonic() - started
    )


@contextlib.contextmanager
def expect_answer(timeout: float) -> Generator[None]:
    """Bound the wait for a machine that is to do something within `timeout` seconds.

    Raises `MachineError` if the machine has not begun by then; see `ANSWER_SECONDS`.
    """
    seconds = max(timeout, ANSWER_SECONDS)
    with anyio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise MachineError(
            f"The machine did not answer within {seconds:g} s, and was asked for nothing more. Try "
            "again later, or continue in another machine."
        )


async def read_bytes(machine: Machine, path: str, *, offset: int = 0, length: int) -> bytes:
    """Read at most `length` bytes of a file in the machine. See `Machine.read`."""
    content = bytearray()
    async with await machine.read(path, offset=offset, length=length) as stream:
        async for chunk in stream:
            content += chunk
    return bytes(content)


async def upload(machine: Machine, source: Path | int, path: str, *, mode: int = 0o644) -> int:
    """Copy a regular file of the host into the machine, a chunk at a time.

    Args:
        machine: The machine to copy it to.
        source: The file on the host: a path, in which symlinks are followed, or an open
            descriptor, which is closed.
        path: The path in the machine.
        mode: The permissions of a new file.

    Returns:
        The size in bytes.

    Raises:
        PathRefused: A path cannot be used. A FIFO or a device is refused without blocking.
        MachineFull: There is no space left in the machine.
    """
    try:
        file = open(source, "rb", buffering=0, opener=_open_without_blocking)  # noqa: ASYNC230, SIM115 - a local open; closed by the stream
    except OSError as error:
        raise PathRefused(f"Cannot read {str(source)!r}: {error.strerror}.") from error
    async with FileReadStream(file) as stream:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise PathRefused(f"Cannot read {str(source)!r}: it is not a regular file.")
        return await machine.write(path, stream, mode=mode)


class _Capture:
    """Keeps the beginning and the end of a stream, in at most twice `limit` bytes of memory."""

    def __init__(self, limit: int) -> None:
        self._head_limit = limit // 2
        self._tail_limit = limit - self._head_limit
        self._head = bytearray()
        self._tail = bytearray()
        self.total = 0

    async def drain(self, stream: ByteReceiveStream) -> None:
        """Read the stream until it ends or breaks."""
        try:
            async for chunk in stream:
                self.feed(chunk)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            return

    def feed(self, chunk: bytes) -> None:
        self.total += len(chunk)
        room = self._head_limit - len(self._head)
        self._head += chunk[:room]
        self._tail += chunk[room:]
        if len(self._tail) > 2 * self._tail_limit:
            self._cut()

    def captured(self) -> Captured:
        self._cut()
        return Captured(bytes(self._head), bytes(self._tail), self.total)

    def _cut(self) -> None:
        del self._tail[: max(0, len(self._tail) - self._tail_limit)]


async def _communicate(
    process: Process, stdin: bytes, timeout: float, limit: int
) -> tuple[ExitStatus | None, Captured, Captured]:
    """Feed and drain a process until it has ended, or was killed at its time-out."""
    stdout, stderr = _Capture(limit), _Capture(limit)
    drained = anyio.Event()
    status: ExitStatus | None = None
    failure: VersRlmError | None = None

    async def drain() -> None:
        async with anyio.create_task_group() as both:
            both.start_soon(stdout.drain, process.stdout)
            both.start_soon(stderr.drain, process.stderr)
        drained.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_feed, process.stdin, stdin)
        tasks.start_soon(drain)
        try:
            status = await _end_of(process, timeout)
            await _wait_for_silence(drained, lambda: stdout.total + stderr.total)
        except VersRlmError as error:  # Raised outside, or the group would wrap it.
            failure = error
        tasks.cancel_scope.cancel()
    if failure:
        raise failure
    return status, stdout.captured(), stderr.captured()


async def _feed(stream: ByteSendStream, data: bytes) -> None:
    """Send all of `data`, then an end of file. The process need not read it."""
    with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
        for start in range(0, len(data), CHUNK):
            await stream.send(data[start : start + CHUNK])
        await stream.aclose()


async def _end_of(process: Process, timeout: float) -> ExitStatus | None:
    with anyio.move_on_after(timeout):
        return await process.wait()
    await process.kill()
    return None


async def _wait_for_silence(drained: anyio.Event, total: Callable[[], int]) -> None:
    """Wait until the outputs have ended or, if a background process holds them, are silent."""
    for _ in range(IDLE_ROUNDS):
        seen = total()
        with anyio.move_on_after(IDLE_SECONDS):
            await drained.wait()
        if drained.is_set() or total() == seen:
            return


def _check_arguments(argv: Sequence[str]) -> None:
    for argument in argv:
        size = len(os.fsencode(argument))
        if size > ARGUMENT_LIMIT:
            raise InputError(
                f"The command is {size:,} bytes long; one argument may have {ARGUMENT_LIMIT:,}. "
                "Write it to a file in the machine and run that, or send data on standard input."
            )
        if "\0" in argument:
            raise InputError("A command cannot hold a NUL byte; leave it out.")


def _open_without_blocking(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)
