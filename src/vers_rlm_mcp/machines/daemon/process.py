"""A daemon that a local program reaches, over its standard streams."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import anyio

from vers_rlm_mcp.errors import MachineError

from .client import Daemon

if TYPE_CHECKING:
    from collections.abc import Sequence

BEGIN_SECONDS: Final = 60.0
"""Until a daemon says that it runs. Milliseconds are usual, seconds where machines are emulated."""


async def connect_process(argv: Sequence[str], **options: Any) -> Daemon:
    """Start a local program that becomes a daemon, or leads to one, and wait until that runs.

    The program is killed when its connection is lost or given up.

    Args:
        argv: The program and its arguments, such as ``docker exec -i ID sh -c COMMAND`` with the
            `command` of a daemon.
        options: What else `asyncio` is to know of the program: ``env``, ``cwd``, ``pass_fds``, …

    Raises:
        BackendUnavailable: There is no Python where the daemon is to run.
        MachineError: The program cannot be started, or the daemon does not begin.
    """
    loop = asyncio.get_running_loop()
    daemon = Daemon()
    try:
        with anyio.fail_after(BEGIN_SECONDS):
            await loop.subprocess_exec(lambda: _Program(daemon), *argv, **options)
            await daemon.begin()
    except BaseException as error:
        await daemon.aclose()
        if isinstance(error, (OSError, TimeoutError, anyio.BrokenResourceError)):
            reason = str(error) or "it ended, or is silent"
            raise MachineError(f"{argv[0]!r} does not lead to a daemon: {reason}") from None
        raise
    return daemon


class _Program(asyncio.SubprocessProtocol):
    """What carries frames to the daemon."""

    _transport: asyncio.SubprocessTransport

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._closed = anyio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.SubprocessTransport)
        self._transport = transport
        self._daemon.connected(self)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 1:
            self._daemon.received(data)
        else:
            self._daemon.complained(data)

    def process_exited(self) -> None:
        self._daemon.ended(self._transport.get_returncode() or 0)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc  # what was complained of says more
        self._daemon.lose()
        self._closed.set()

    def write(self, data: bytes) -> None:
        """Send as soon as there is room."""
        pipe = self._transport.get_pipe_transport(0)
        assert isinstance(pipe, asyncio.WriteTransport)
        pipe.write(data)

    def abort(self) -> None:
        """Kill the program."""
        self._transport.close()

    async def wait_closed(self) -> None:
        """Wait until it has ended."""
        await self._closed.wait()
