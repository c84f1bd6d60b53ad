"""What is known of an endpoint, shared by all models of this process that use it."""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass, field

import anyio
from anyio.lowlevel import RunVar

from vers_rlm_mcp.retries import MAX_RETRY_AFTER

from .forms import Form

MAX_CALLS = 32
"""Calls in flight at once: what providers commonly allow one key."""


CAUTION = 8
"""Successes, at least, before one more call is tried: the next overload may cost a reply."""


class CallLimit:
    """Limits the calls in flight: additive increase, multiplicative decrease.

    Overload halves the limit, once for all calls that were in flight when it showed. Each success
    raises it by a part of one, up to `most`.
    """

    def __init__(self, most: int = MAX_CALLS) -> None:
        self.successes = 0
        """How many calls have succeeded."""
        self._most = most
        self._limit = float(most)
        self._active = 0
        self._halved = 0
        self._held_until = 0.0
        self._waiting: deque[anyio.Event] = deque()

    def set_most(self, most: int) -> None:
        """Change the upper bound."""
        if most != self._most:
            self._limit = float(most) if self._limit == self._most else min(self._limit, most)
            self._most = most
            self._wake()

    async def acquire(self) -> int:
        """Wait for a place, in order of arrival, and for the end of a wait that all must hold.

        Returns what `report_overload` wants to know.
        """
        turn = anyio.Event()
        self._waiting.append(turn)
        self._wake()
        try:
            await turn.wait()
            while self._held_until > anyio.current_time():  # noqa: ASYNC110 - it is a time
                await anyio.sleep_until(self._held_until)
        except BaseException:
            if turn.is_set():
                self.release()
            else:
                self._waiting.remove(turn)
            raise
        return self._halved

    def release(self) -> None:
        """Give a place back."""
        self._active -= 1
        self._wake()

    def report_success(self) -> None:
        """A call has succeeded."""
        self.successes += 1
        self._limit = min(self._most, self._limit + 1 / max(CAUTION, self._limit))
        self._wake()

    def report_overload(self, halved: int, retry_after: float | None) -> None:
        """A call that `acquire` let pass was refused or cut off for too much load."""
        if halved == self._halved:
            self._halved += 1
            self._limit = max(1.0, min(self._limit, self._active) / 2)
        if retry_after and retry_after <= MAX_RETRY_AFTER:  # a longer one is reported instead
            self._held_until = max(self._held_until, anyio.current_time() + retry_after)

    def _wake(self) -> None:
        while self._waiting and self._active < int(self._limit):
            self._active += 1
            self._waiting.popleft().set()


@dataclass(slots=True)
class EndpointMemory:
    """What is known of one model at one address with one key."""

    form: Form = field(default_factory=Form)
    """The last form of request that worked."""
    blanks: int = 0
    """Answers without a reply or an error in a row."""
    calls: CallLimit = field(default_factory=CallLimit)


# Each event loop has its own, since calls wait for each other.
_MEMORIES: RunVar[dict[bytes, EndpointMemory]] = RunVar("models.endpoints")


def recall(*identity: str) -> EndpointMemory:
    """The memory of the endpoint with this identity."""
    memories = _MEMORIES.get(dict[bytes, EndpointMemory]())
    _MEMORIES.set(memories)
    key = hashlib.sha256("\0".join(identity).encode()).digest()
    return memories.setdefault(key, EndpointMemory())
