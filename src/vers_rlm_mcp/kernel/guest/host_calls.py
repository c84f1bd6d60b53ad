"""Calls from cells to functions of the host, from any thread."""

from __future__ import annotations

import itertools
import threading

from ..wire import FrameError, dump, load
from .frames import MAX_CALL_VALUES, MAX_CALLS
from .host_link import Attachment, Detached

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from ..wire import Frame


class HostError(RuntimeError):
    """The host could not, or would not, do what a cell asked of it."""


class _Waiter:
    """A call that waits for its reply."""

    def __init__(self) -> None:
        self.done = threading.Lock()
        self.done.acquire()
        self.error: str | None = "the call was not answered"
        self.value: Any = None

    def settle(self, error: str | None, value: Any = None) -> None:
        self.error, self.value = error, value
        self.done.release()


class Calls:
    """The calls in flight. They belong to the cell that runs, and end with it.

    Args:
        shield: Does something that an interrupt must not leave half done.
    """

    def __init__(self, shield: Callable[[Callable[[], None]], None]) -> None:
        self._shield = shield
        self._waiting: dict[int, _Waiter] = {}
        self._numbers = itertools.count(1)
        self._slots = threading.BoundedSemaphore(MAX_CALLS)
        # Held while a call is sent, so that none is sent after its cell is over. The thread that
        # reads replies never takes it: it must not wait for a host that waits for it.
        self._sending = threading.Lock()
        self._host: Attachment | None = None

    def open(self, host: Attachment) -> None:
        """Send calls to `host`, whose cell starts."""
        self._host = host

    def close(self) -> None:
        """End with the cell: calls that other threads still wait for fail."""
        with self._sending:
            self._host = None
        self.fail("the cell that made this call is over")

    def call(self, name: str, arguments: dict[str, Any], **extra: Any) -> Any:
        """Call a function of the host and wait for its value. Raises `HostError`."""
        try:
            payload = dump({"arguments": arguments, **extra}, most=MAX_CALL_VALUES)
        except FrameError as error:
            raise HostError(f"{name} was given too much: {error}") from None
        with self._slots:
            number, waiter = next(self._numbers), _Waiter()
            self._waiting[number] = waiter
            try:
                self._send(number, name, payload)
                waiter.done.acquire()
            finally:
                self._waiting.pop(number, None)
        if waiter.error is not None:
            raise HostError(waiter.error)
        return waiter.value

    def _send(self, number: int, name: str, payload: bytes) -> None:
        with self._sending:
            host = self._host
            if host is None:
                raise HostError(f"{name} can only be called while a cell runs")
            try:
                self._shield(lambda: host.send("call", {"id": number, "name": name}, payload))
            except Detached:
                raise HostError("the connection to the host was lost") from None

    def reply(self, frame: Frame) -> None:
        """Settle the call that this answers. A reply to a call that was given up is dropped."""
        waiter = self._waiting.pop(frame.fields["id"], None)
        if waiter is None:
            return
        if frame.fields["ok"]:
            waiter.settle(None, load(frame.payload, surrogates=True))
        else:
            waiter.settle(frame.payload.decode())

    def fail(self, reason: str) -> None:
        """Let every call in flight fail."""
        while self._waiting:
            try:
                _, waiter = self._waiting.popitem()
            except KeyError:
                return
            waiter.settle(reason)
