"""The connection to a machine's PID 1, its daemon: frames, and descriptors along with them."""

from __future__ import annotations

import array
import asyncio
import os
import socket
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..daemon import Daemon

READ_SIZE: Final = 64 * 1024


class Control:
    """What carries frames to PID 1 and back. Belongs to the event loop that it was made in."""

    def __init__(self, connection: socket.socket, daemon: Daemon) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._daemon = daemon
        self._loop = asyncio.get_running_loop()
        self._unsent: deque[tuple[memoryview, list[int]]] = deque()
        """Data that waits for room, with copies of the descriptors that go with it."""
        self._loop.add_reader(connection, self._receive)
        daemon.connected(self, self.pass_on)

    def write(self, data: bytes) -> None:
        """Send as soon as there is room."""
        self.pass_on(data, ())

    def pass_on(self, data: bytes, descriptors: Sequence[int]) -> None:
        """Send along with descriptors, which may be closed afterwards."""
        left = memoryview(data)
        if not self._unsent:
            if sent := self._send(left, descriptors):
                left, descriptors = left[sent:], ()
            if not left or self._socket.fileno() < 0:
                return
            self._loop.add_writer(self._socket, self._flush)
        copies: list[int] = []
        self._unsent.append((left, copies))
        try:
            for number in descriptors:
                copies.append(os.dup(number))  # noqa: PERF401 - closed after an error
        except OSError:  # This process has no descriptor left, and the frame cannot be sent.
            self._daemon.lose()

    def abort(self) -> None:
        """Close the connection, and with it the machine."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()
        while self._unsent:
            _close(self._unsent.popleft()[1])

    async def wait_closed(self) -> None:
        """Nothing of it is left once it was closed."""

    def _flush(self) -> None:
        while self._unsent:
            data, descriptors = self._unsent[0]
            sent = self._send(data, descriptors)
            if not sent:
                return
            _close(descriptors)
            if sent < len(data):
                self._unsent[0] = data[sent:], []
            else:
                self._unsent.popleft()
        self._loop.remove_writer(self._socket)

    def _send(self, data: memoryview, descriptors: Sequence[int]) -> int:
        """Send what there is room for. After an error the connection is closed."""
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
        try:
            return self._socket.sendmsg([data], [rights] if descriptors else [])
        except BlockingIOError:
            return 0
        except OSError:
            self._daemon.lose()
            return 0

    def _receive(self) -> None:
        try:
            data = self._socket.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._daemon.received(data)
        else:
            self._daemon.lose()


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
