"""A host's attachment to the kernel of a machine: frames over the pipes of one process."""

from __future__ import annotations

import posixpath
import secrets
import signal
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import anyio
from anyio.lowlevel import checkpoint

from vers_rlm_mcp.errors import KernelError, MachineError, MachineGone, PathRefused, WireError
from vers_rlm_mcp.machines.complaint import MAX_COMPLAINT, Complaint

from .archive import ENTRY, guest_archive
from .guest.frames import FROM_GUEST
from .wire import Decoder, Frame, FrameError, encode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vers_rlm_mcp.machines import Machine, Process

Mode = Literal["attach", "restart", "kill"]

DIRECTORIES = ("/run/vers-rlm", "/tmp/.vers-rlm")  # noqa: S108 - a path in the machine
"""Where the kernel's program and socket are kept: the first of these that can be written."""

VARIABLES = "/workspace/.vers-rlm/variables"
"""Where variables are saved: in a directory that copies carry on every backend."""

READ_SIZE = 256 * 1024
COMPLAINT_SECONDS = 1.0
"""For reading what a process wrote before it ended, which is there already."""

TURNS = 3
"""Turns of the event loop within which a stream reports its end if that has come. Most streams
yield to other tasks first, so that a look without any turn would always be cancelled."""

NAME_BYTES = 4
"""Random bytes in the name of an upload: several hosts may be sending the program at once."""

LOOK_SECONDS = 10.0
"""A shell that looks for three files takes milliseconds."""

SOCKET = "kernel.sock"
"""The kernel's socket, in one of the directories; see `guest.attach`."""

_ANY_EXISTS = 'for path; do if [ -e "$path" ]; then exit 0; fi; done; exit 1'
_SIGNAL_EXIT = 128
_UNKNOWN_END = 120
_RELEASED = 121
"""Exit statuses of the program; see `guest.attach`."""

_UNKNOWN = "nothing is known of how it ended"


class Lost(Exception):
    """The attachment was ended by the other side; the text says how, as far as that is known."""

    def __init__(self, how: str, *, taken_over: bool = False) -> None:
        super().__init__(how)
        self.taken_over = taken_over
        """Whether the kernel still runs, for another host."""


class Attachment:
    """One connection. Only one task receives at a time; any may send."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._decoder = Decoder(FROM_GUEST)
        self._frames: Iterator[Frame] = iter(())
        self._sending = anyio.Lock()
        self.is_broken = False
        """Whether a frame was sent in part, so that no other can follow it, or the end was seen."""

    async def send(self, kind: str, payload: bytes = b"", **fields: Any) -> None:
        """Send a frame. Raises `Lost`, or `FrameError` if it exceeds the limits."""
        data = encode(kind, fields, payload)
        async with self._sending:
            if self.is_broken:
                raise Lost("the connection broke in the middle of a frame")
            self.is_broken = True
            try:
                await self._process.stdin.send(data)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                raise await self._end() from None
            self.is_broken = False

    async def receive(self) -> Frame:
        """The next frame. Raises `Lost`, or `WireError` for bytes that break the protocol."""
        while True:
            await checkpoint()  # A flood of small frames must not keep others from the loop.
            try:
                if frame := next(self._frames, None):
                    return frame
            except FrameError as error:
                raise WireError(f"The kernel does not keep to the protocol: {error}.") from None
            if not await self._read():
                raise await self._end()

    async def is_lost(self) -> bool:
        """Whether the attachment is known to have ended. Call it only with nothing in flight."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._look)
            for _ in range(TURNS):
                await checkpoint()
            tasks.cancel_scope.cancel()
        return self.is_broken

    async def aclose(self) -> None:
        """Release the kernel, which keeps running."""
        self.is_broken = True
        await self._process.aclose()

    async def _look(self) -> None:
        self.is_broken = not await self._read() or self.is_broken

    async def _read(self) -> bool:
        """Read what has arrived. False at the end of the stream."""
        try:
            data = await self._process.stdout.receive(READ_SIZE)
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            return False
        self._frames = self._decoder.feed(data)
        return True

    async def _end(self) -> Lost:
        with anyio.move_on_after(COMPLAINT_SECONDS):
            try:
                code = (await self._process.wait()).code
            except MachineGone:
                raise
            except MachineError as error:  # the way to the machine broke; the kernel may still run
                return Lost(str(error))
            if code == _RELEASED:
                return Lost("another host has taken it over", taken_over=True)
            complaint = await self._complaint()
            return Lost(f"its program failed: {complaint}" if complaint else _describe_exit(code))
        return Lost(_UNKNOWN)

    async def _complaint(self) -> str:
        complaint = Complaint()
        await complaint.read(self._process.stderr, MAX_COMPLAINT)
        return complaint.text


def _describe_exit(code: int | None) -> str:
    if code is None or code == _UNKNOWN_END:
        return _UNKNOWN
    if code > _SIGNAL_EXIT:
        number = code - _SIGNAL_EXIT
        why = _LIKELY_CAUSES.get(number, "")
        return f"it was killed by signal {number}{why}"
    return f"it ended with exit code {code}"


_LIKELY_CAUSES = MappingProxyType(
    {
        int(signal.SIGKILL): " (SIGKILL: most likely it used more memory than the machine has)",
        int(signal.SIGSEGV): " (SIGSEGV: a crash in compiled code)",
        int(signal.SIGABRT): " (SIGABRT: compiled code gave up)",
    }
)


async def upload(machine: Machine) -> str:
    """Put the kernel's program into the machine and return its path.

    Its name is a new one, because a kernel may be reading the program that an earlier host sent.
    """
    name, data = guest_archive()
    name = f"{name}.{secrets.token_hex(NAME_BYTES)}"
    preferred, fallback = (f"{directory}/{name}" for directory in DIRECTORIES)
    try:
        await machine.write(preferred, data)
    except PathRefused:
        await machine.write(fallback, data)
        return fallback
    return preferred


async def has_kernel(machine: Machine) -> bool:
    """Whether a machine has a kernel, or saved variables for its first one."""
    sockets = [f"{directory}/{SOCKET}" for directory in DIRECTORIES]
    argv = ["sh", "-c", _ANY_EXISTS, "sh", VARIABLES, *sockets]
    async with await machine.spawn(argv, cwd="/") as process:
        with anyio.move_on_after(LOOK_SECONDS):
            return (await process.wait()).ok
    return False


async def start_program(machine: Machine, sent: str, mode: Mode) -> Process:
    """Start the program that attaches to the kernel, and starts the kernel if there is none.

    `sent` is the path that `upload` returned. The program moves itself from there.
    """
    directory = posixpath.dirname(sent)
    archive = f"{directory}/{guest_archive()[0]}"
    # Without `site`, which the kernel imports later, when no one waits for it.
    argv = ["python3", "-S", "-c", ENTRY, sent, archive, directory, VARIABLES, mode]
    try:
        return await machine.spawn(argv)
    except PathRefused as error:
        raise KernelError(
            f"No kernel can be started in this machine: python3 cannot be run there: {error}"
        ) from error
