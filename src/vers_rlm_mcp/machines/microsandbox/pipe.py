"""Carries frames to and from a machine's daemon, a program that the library runs."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import anyio

from ..daemon import Daemon, command

if TYPE_CHECKING:
    from .library import Library

BEGIN_SECONDS: Final = 60.0
"""Until the daemon says that it runs: milliseconds, or seconds on an emulated machine."""

END_SECONDS: Final = 5.0
"""To close the daemon's input."""


class Pipe:
    """A daemon, and the two tasks that send its input and receive its output.

    The windows of the daemon's streams bound what waits to be sent.
    """

    def __init__(self, program: Any, library: Library) -> None:
        self.daemon = Daemon()
        self._program = program
        self._library = library
        self._unsent = bytearray()
        self._news = anyio.Event()
        self._tasks = [asyncio.create_task(self._send()), asyncio.create_task(self._receive())]
        self.daemon.connected(self)

    def write(self, data: bytes) -> None:
        """Send, as soon as there is room."""
        self._unsent += data
        self._news.set()

    def abort(self) -> None:
        """End the daemon's input, and with it the daemon, without waiting."""
        for task in self._tasks:
            task.cancel()

    async def wait_closed(self) -> None:
        """Wait until both tasks have ended."""
        await asyncio.wait(self._tasks)

    async def _send(self) -> None:
        sink = self._program.take_stdin()
        try:
            while True:
                await self._news.wait()
                self._news = anyio.Event()
                data, self._unsent = bytes(self._unsent), bytearray()
                with self._library.doing("send to a machine"):
                    await sink.write(data)
        except Exception:  # noqa: BLE001 - whatever it was, nothing can be sent any more
            self.daemon.lose()
        finally:
            with anyio.move_on_after(END_SECONDS, shield=True), suppress(Exception):
                await sink.close()

    async def _receive(self) -> None:
        try:
            while (event := await self._program.recv()) is not None:
                self._take(event)
        except Exception as error:  # noqa: BLE001 - whatever it was, nothing more will come
            self.daemon.complained(str(error).encode())
        finally:
            self.daemon.lose()

    def _take(self, event: Any) -> None:
        kind = str(event.event_type)
        if kind == "stdout":
            self.daemon.received(event.data)
        elif kind == "stderr":
            self.daemon.complained(event.data)
        elif kind == "exited":
            self.daemon.ended(event.code)


async def start_daemon(library: Library, name: str) -> Daemon:
    """Start a daemon in a machine.

    Raises `NoSuchSandbox` or another `MachineError`, or `anyio.BrokenResourceError` or
    `TimeoutError` when it does not begin.
    """
    daemon = Pipe(await library.stream(name, command()), library).daemon
    try:
        with anyio.fail_after(BEGIN_SECONDS):
            await daemon.begin()
    except BaseException:
        daemon.lose()
        raise
    return daemon
