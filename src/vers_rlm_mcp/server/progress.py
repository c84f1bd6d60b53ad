"""Progress notifications: every step, a heartbeat while nothing happens, and never a flood."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Self

import anyio

if TYPE_CHECKING:
    from types import TracebackType

logger = logging.getLogger(__name__)

Report = Callable[[float, float | None, str | None], Awaitable[None]]

HEARTBEAT_SECONDS = 8.0
"""Silence after which a call reports that it is still running: clients give up on silent calls."""

INTERVAL_SECONDS = 0.1
"""Time between two passing messages: no one reads more than ten a second."""

QUEUE_LENGTH = 256
"""Messages kept for a client that is slow to read them; beyond that, the oldest are dropped."""

STEP_SHARE = 0.05
"""By how much of what is left of a step a message moves the progress on."""

FLUSH_SECONDS = 1.0
"""How long the end of a call waits for the client to read the last messages."""


class Progress:
    """Reports the progress of a call, which never waits for the client.

    Inside the ``async with``, `say` queues a message; a task sends it. The progress value is the
    number of steps done, of a total, or else of seconds since the call began. It always rises:
    within a step, by a fraction.

    Args:
        report: Sends one notification. It may block, and its errors do not reach the call.
        what: What is running, for the heartbeat.
        in_steps: Whether `count` will be called.
    """

    def __init__(self, report: Report, what: str, *, in_steps: bool = False) -> None:
        self._report = report
        self._what = what
        self._queue: deque[tuple[str, bool]] = deque(maxlen=QUEUE_LENGTH)
        self._news = anyio.Event()
        self._closing = anyio.Event()
        self._tasks = anyio.create_task_group()
        self._started = time.monotonic()
        self._sent = 0.0
        self._steps = 0 if in_steps else None
        self._total: int | None = None

    def count(self, steps: int, total: int) -> None:
        """Set how many steps are done, of how many at most."""
        self._steps, self._total = steps, total

    def say(self, message: str, *, passing: bool = False) -> None:
        """Queue a message. A `passing` one is replaced by the next if it has not been sent yet."""
        if self._queue and self._queue[-1][1]:
            self._queue.pop()
        self._queue.append((message, passing))
        self._news.set()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._run)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._news.set()
        if exc is None:
            self._tasks.cancel_scope.deadline = anyio.current_time() + FLUSH_SECONDS
        else:
            self._tasks.cancel_scope.cancel()
        # The group must not see the call's exception: it would wrap it.
        await self._tasks.__aexit__(None, None, None)

    async def _run(self) -> None:
        while self._queue or not self._closing.is_set():
            with anyio.move_on_after(HEARTBEAT_SECONDS) as silence:
                await self._news.wait()
            if silence.cancelled_caught:
                seconds = time.monotonic() - self._started
                self.say(f"{self._what} is still running ({seconds:.0f} s)", passing=True)
            self._news = anyio.Event()
            while self._queue:
                await self._send(self._queue.popleft()[0])
            with anyio.move_on_after(INTERVAL_SECONDS):
                await self._closing.wait()

    async def _send(self, message: str) -> None:
        if self._steps is None:
            self._sent = max(self._sent + 0.001, round(time.monotonic() - self._started, 3))
        else:
            within = self._sent + (self._steps + 1 - self._sent) * STEP_SHARE
            self._sent = within if self._sent >= self._steps else self._steps
        try:
            await self._report(self._sent, self._total, message)
        except Exception:
            logger.debug("The client did not take a progress notification", exc_info=True)
