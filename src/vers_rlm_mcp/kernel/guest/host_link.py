"""Frames to and from the attached host. There is one at a time: the newest wins."""

from __future__ import annotations

import os
import select
import threading
from _socket import socket
from contextlib import suppress

from ..wire import Decoder, FrameError, encode
from .attach import FAREWELL, receive_descriptors
from .frames import TO_GUEST
from .memory import lift

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from ..wire import Frame

    class Receiver(Protocol):
        """What the link calls, in its own thread."""

        def attached(self) -> None:
            """A host has attached; any former one is gone."""

        def received(self, frame: Frame, host: Attachment) -> None:
            """A frame came."""

        def detached(self) -> None:
            """The host is gone."""


READ_SIZE = 256 * 1024
HANDSHAKE_SECONDS = 2.0
"""The attaching program sends its descriptors at once; anything else is not one."""

BLOCKED_POLL_MS = 100
"""How often a blocked writer checks whether its attachment was closed."""


class Detached(ConnectionError):
    """The host is gone."""


class Attachment:
    """One host: what it writes to, what it reads from, and the program that stands for it."""

    def __init__(self, bridge: socket, receive: int, send: int) -> None:
        self.bridge = bridge
        self.receive = receive
        self.closed = False
        self.decoder = Decoder(TO_GUEST)
        self._send = send
        self._lock = threading.Lock()
        os.set_blocking(send, False)

    def send(self, kind: str, fields: dict[str, Any], payload: bytes = b"") -> None:
        """Send a frame, from any thread.

        Raises `Detached`, or `FrameError` when the frame is over the limits.
        """
        data = encode(kind, fields, payload)
        with self._lock, memoryview(data) as rest:
            sent = 0
            while sent < len(rest):
                if self.closed:
                    raise Detached("the host is gone")
                try:
                    sent += os.write(self._send, rest[sent:])
                except BlockingIOError:
                    self._wait_until_writable()
                except OSError as error:
                    raise Detached("the host is gone") from error

    def _wait_until_writable(self) -> None:
        poll = select.poll()
        poll.register(self._send, select.POLLOUT)
        poll.poll(BLOCKED_POLL_MS)

    def close(self) -> None:
        """Release the host, which sees the end of the stream."""
        self.closed = True
        with self._lock:
            os.close(self._send)
            os.close(self.receive)
            with suppress(OSError):
                self.bridge.send(FAREWELL)
            self.bridge.close()

    def forget(self) -> None:
        """Close the descriptors in a forked child, where the lock may be held indefinitely."""
        self.closed = True
        self._lock = threading.Lock()
        os.close(self._send)
        os.close(self.receive)
        self.bridge.close()


class Link:
    """Accepts hosts and reads their frames, in its own thread."""

    def __init__(self, listener: socket, receiver: Receiver) -> None:
        self._listener = listener
        self._receiver = receiver
        self._attachment: Attachment | None = None
        os.register_at_fork(after_in_child=self._forget)

    def serve(self) -> None:
        """Accept and read until the process ends."""
        while True:
            attachment = self._attachment
            poll = select.poll()
            poll.register(self._listener.fileno(), select.POLLIN)
            if attachment:
                poll.register(attachment.receive, select.POLLIN)
                poll.register(attachment.bridge.fileno(), select.POLLIN)
            while self._attachment is attachment:
                for descriptor, _ in poll.poll():
                    try:
                        self._serve_one(descriptor, attachment)
                    except MemoryError:  # a cell has left none
                        lift()

    def _serve_one(self, descriptor: int, attachment: Attachment | None) -> None:
        if descriptor == self._listener.fileno():
            self._accept()
        elif attachment and self._attachment is attachment:
            if descriptor == attachment.receive:
                self._read(attachment)
            else:
                self._detach()  # the bridge was killed

    def _accept(self) -> None:
        listener: Any = self._listener
        descriptor, _ = listener._accept()
        bridge = socket(fileno=descriptor)
        bridge.settimeout(HANDSHAKE_SECONDS)
        try:
            receive, send = receive_descriptors(bridge)
        except OSError:
            bridge.close()
            return
        self._detach()
        self._attachment = Attachment(bridge, receive, send)
        self._receiver.attached()

    def _read(self, attachment: Attachment) -> None:
        try:
            data = os.read(attachment.receive, READ_SIZE)
            for frame in attachment.decoder.feed(data):
                self._receiver.received(frame, attachment)
        except (OSError, FrameError):
            data = b""
        if not data:
            self._detach()

    def _detach(self) -> None:
        attachment, self._attachment = self._attachment, None
        if attachment:
            attachment.close()
            self._receiver.detached()

    def _forget(self) -> None:
        attachment, self._attachment = self._attachment, None
        self._listener.close()
        if attachment:
            attachment.forget()
