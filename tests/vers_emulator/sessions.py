"""Sessions of SSH: commands, shells and SFTP servers that run in a machine.

As with OpenSSH, a command runs in a session of its own under ``sh -c``, gets signals as a group,
and its exit is told when it happens, while the channel stays open until nobody holds its output
any more. A channel that is closed takes away the command's pipes, not its life. There are no
terminals, and no forwarding of ports or sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
import asyncssh
from anyio.streams.buffered import BufferedByteReceiveStream
from asyncssh.constants import EXTENDED_DATA_STDERR
from asyncssh.packet import Boolean, SSHPacket, String, UInt32

from vers_rlm_mcp.errors import MachineError, PathRefused
from vers_rlm_mcp.machines import run_command

from . import kernels
from .faults import Cut

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anyio.abc import ByteReceiveStream, ByteSendStream

    from vers_rlm_mcp.machines import ExitStatus, Process

    from .ssh import SshService
    from .vms import Vm

logger = logging.getLogger(__name__)

HOME: Final = "/root"

SFTP: Final = Path(__file__).with_name("sftp_guest.py").read_text()

ANNOUNCED: Final = 'echo $$ >&2; exec "$@"'
"""Tells the process group, to which signals go, as the first line of standard error."""

GROUP_DIGITS: Final = 20

NOT_FOUND: Final = 127

SIGNALS: Final = frozenset({"ABRT", "ALRM", "FPE", "HUP", "ILL", "INT", "KILL"}) | frozenset(
    {"PIPE", "QUIT", "SEGV", "TERM", "USR1", "USR2"}
)
"""Those that RFC 4254 names."""

SIGNAL_SECONDS: Final = 10.0
"""How long sending a signal in a machine may take."""

WINDOW: Final = 2 * 1024 * 1024
MAX_PACKET: Final = 32 * 1024
"""What OpenSSH offers for a session."""


class Channel(asyncssh.SSHServerChannel[bytes]):
    """Takes commands of any bytes, and tells how one ended without closing."""

    @classmethod
    def for_bytes(cls, connection: asyncssh.SSHServerConnection) -> Channel:
        """A channel without terminal, line editor and encoding."""
        return cls(
            connection,
            asyncio.get_running_loop(),
            allow_pty=False,
            line_editor=False,
            line_echo=False,
            line_history=0,
            max_line_length=0,
            encoding=None,
            errors="strict",
            window=WINDOW,
            max_pktsize=MAX_PACKET,
        )

    def _process_exec_request(self, packet: SSHPacket) -> bool:
        command = os.fsdecode(packet.get_string())
        packet.check_end()
        return self._start_session(command=command)

    def send_output(self, data: bytes, datatype: asyncssh.DataType) -> None:
        """Write to standard output, whose type is None, or to standard error."""
        self.write(data, datatype)  # pyright: ignore[reportUnknownMemberType] - asyncssh's base class is not typed

    def tell_exit(self, status: ExitStatus) -> None:
        """Send the exit status or signal."""
        if self.is_closing():
            return
        if status.signal is None:
            self._send_request(b"exit-status", UInt32(status.code or 0))
            return
        name = signal.Signals(status.signal).name.removeprefix("SIG")
        name = name if name in SIGNALS else "SIG@openssh.com"
        self._send_request(b"exit-signal", String(name), Boolean(False), String(""), String(""))


class Session(asyncssh.SSHServerSession[bytes]):
    """A command, a shell or an SFTP server that runs in the machine."""

    _channel: Channel

    def __init__(
        self,
        service: SshService,
        vm: Vm,
        cut: Callable[[], None],
        ended: Callable[[Session], None],
    ) -> None:
        self._service = service
        self._vm = vm
        self._cut = cut
        self._ended = ended
        self._kind = ""
        self._argv: Sequence[str] = ()
        self._send_input, self._input = anyio.create_memory_object_stream[bytes](math.inf)
        self._writable = anyio.Event()
        self._writable.set()
        self._group = ""
        self._closed = anyio.CancelScope()
        self._armed = anyio.Event()
        self._cut_at: float | None = None
        self._bytes_left = math.inf

    # What asyncssh tells

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        assert isinstance(chan, Channel)
        self._channel = chan

    def shell_requested(self) -> bool:
        return self._request("shell", ["sh", "-l"])

    def exec_requested(self, command: str) -> bool:
        return self._request("exec", ["sh", "-c", command])

    def subsystem_requested(self, subsystem: str) -> bool:
        program = ["python3", "-I", "-S", "-c", SFTP]
        return subsystem == "sftp" and self._request("sftp", program)

    def session_started(self) -> None:
        self._service.tasks.start_soon(self._serve)

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        self._channel.pause_reading()  # Until the program has taken it.
        self._send_input.send_nowait(data)
        self._count(len(data))

    def eof_received(self) -> bool:
        self._send_input.close()
        return True  # The other way stays open.

    def signal_received(self, signal: str) -> None:
        if signal in SIGNALS and self._group and self._kind != "sftp":
            self._service.tasks.start_soon(self._signal, signal)

    def pause_writing(self) -> None:
        self._writable = anyio.Event()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._send_input.close()
        self._input.close()
        self._closed.cancel()
        self._ended(self)

    # What is done

    def _request(self, kind: str, argv: Sequence[str]) -> bool:
        self._kind, self._argv = kind, argv
        self._service.counts.sessions[kind] += 1
        return True

    async def _serve(self) -> None:
        try:
            await self._run()
        except Exception:  # A session that fails must not end the others.
            logger.exception("A session failed")
            self._cut()

    async def _run(self) -> None:
        with self._closed:
            await self._vm.awake.wait()
            process = await self._spawn()
            if process is None:
                self._channel.exit(NOT_FOUND)
                return
            try:
                await self._attend(process)
                self._channel.close()
            finally:
                self._service.tasks.start_soon(self._look_after, process)

    async def _spawn(self) -> Process | None:
        """Start the program, whole: a client that goes away meanwhile does not stop it."""
        argv = ["sh", "-c", ANNOUNCED, "sh", *self._argv]
        with anyio.CancelScope(shield=True):
            try:
                return await self._vm.machine.spawn(argv, env=self._environment(), cwd=HOME)
            except (PathRefused, MachineError) as error:
                self._channel.send_output(f"{error}\n".encode(), EXTENDED_DATA_STDERR)
                return None

    def _environment(self) -> dict[str, str]:
        """What Ubuntu's sshd takes from clients, and what the emulator adds."""
        added = kernels.ENVIRONMENT if self._service.options.fork_kernels else {}
        given = self._channel.get_environment().items()
        return {key: value for key, value in given if key.startswith(("LANG", "LC_"))} | added

    async def _attend(self, process: Process) -> None:
        """Carry the streams until the program has ended and nobody holds its output."""
        errors = BufferedByteReceiveStream(process.stderr)
        with contextlib.suppress(anyio.IncompleteRead):
            self._group = (await errors.receive_until(b"\n", GROUP_DIGITS)).decode()
        async with anyio.create_task_group() as inputs:
            inputs.start_soon(self._feed, process.stdin)
            inputs.start_soon(self._cut_in_time)
            async with anyio.create_task_group() as outputs:
                outputs.start_soon(self._pump, process.stdout, None)
                outputs.start_soon(self._pump, errors, EXTENDED_DATA_STDERR)
                outputs.start_soon(self._tell_exit, process)
            inputs.cancel_scope.cancel()

    async def _tell_exit(self, process: Process) -> None:
        try:
            self._channel.tell_exit(await process.wait())
        except MachineError:  # Its machine was deleted.
            self._cut()

    async def _feed(self, target: ByteSendStream) -> None:
        with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            async for data in self._input:
                await target.send(data)
                self._channel.resume_reading()
        await target.aclose()

    async def _pump(self, source: ByteReceiveStream, datatype: asyncssh.DataType) -> None:
        async for data in source:
            await self._writable.wait()
            self._channel.send_output(data, datatype)
            self._count(len(data))

    async def _look_after(self, process: Process) -> None:
        """Wait for what goes on without its channel."""
        async with process:
            if self._service.options.close_kills:
                return
            for stream in (process.stdin, process.stdout, process.stderr):
                await stream.aclose()
            with contextlib.suppress(MachineError):
                await process.wait()

    async def _signal(self, name: str) -> None:
        script = 'kill -s "$1" -- "-$2"'
        argv = ["sh", "-c", script, "sh", name, self._group]
        with contextlib.suppress(MachineError):
            await run_command(self._vm.machine, argv, timeout=SIGNAL_SECONDS)

    # Faults

    def _look_for_a_cut(self) -> None:
        """Arm a fault that is set by now: sessions may go on for long."""
        if self._cut_at is not None:
            return
        fault = self._service.faults.take(Cut, self._kind, self._vm.id)
        if fault is None:
            return
        if fault.after_bytes is not None:
            self._bytes_left = fault.after_bytes
        seconds = math.inf if fault.after_seconds is None else fault.after_seconds
        self._cut_at = anyio.current_time() + seconds
        self._armed.set()

    async def _cut_in_time(self) -> None:
        self._count(0)
        await self._armed.wait()
        await anyio.sleep_until(self._cut_at or 0)
        self._cut()

    def _count(self, size: int) -> None:
        """Count what goes through the streams, and break the connection when it is time."""
        self._look_for_a_cut()
        self._bytes_left -= size
        if self._bytes_left <= 0:
            self._cut()
