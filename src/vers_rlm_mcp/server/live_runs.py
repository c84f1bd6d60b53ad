# ruff: noqa: PLC0415 - the rooms below are imported by the first call
"""Runs that go on whoever waits for them, and whoever has given up waiting."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from math import inf
from typing import TYPE_CHECKING

import anyio

from vers_rlm_mcp.errors import UsageError, VersRlmError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    from anyio.abc import TaskGroup

    from vers_rlm_mcp.rlm import Event
    from vers_rlm_mcp.runs import RunResult

    Perform = Callable[[Callable[[Event], None]], Awaitable[RunResult]]
    """Performs a run, and tells its events."""

RECENT = 16
"""Runs that have ended and whose results are kept here: the disk may have been full."""

logger = logging.getLogger(__name__)


class LiveRun:
    """A run under way in this process, until it has ended."""

    def __init__(self, run_id: str, principal: str | None) -> None:
        self.run_id = run_id
        self.principal = principal
        self.doing = ""
        """What it is at, in words."""
        self.result: RunResult | None = None
        """What came of it; None while it goes on, and when it failed or was cancelled."""
        self.error: Exception | None = None
        """Why it failed."""
        self._ended = anyio.Event()
        self._scope = anyio.CancelScope()
        self._listeners: list[Callable[[Event], None]] = []

    @property
    def has_ended(self) -> bool:
        """Whether it has come to its end, its clean-up included."""
        return self._ended.is_set()

    async def wait(self, seconds: float = inf) -> bool:
        """Wait for its end, its machines' included; whether that has come."""
        with anyio.move_on_after(seconds):
            await self._ended.wait()
        return self.has_ended

    @contextmanager
    def heard_by(self, listener: Callable[[Event], None]) -> Generator[None]:
        """Let somebody hear its events inside the ``with``. The listener must not block."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    def cancel(self) -> None:
        """End it; `wait` for it to have cleaned up."""
        self._scope.cancel()

    async def perform(self, perform: Perform) -> None:
        """Perform it. What it raises is kept for those who wait."""
        try:
            with self._scope:
                self.result = await perform(self._tell)
        except VersRlmError as error:
            self.error = error
        except Exception as error:
            logger.exception("%s ended on a fault of this server", self.run_id)
            self.error = error
        finally:
            self._ended.set()

    def _tell(self, event: Event) -> None:
        from vers_rlm_mcp.rlm import narrate

        self.doing = narrate(event) or self.doing
        for listener in self._listeners:
            listener(event)


class LiveRuns:
    """The runs that are under way in this process, and the last ones that were.

    Args:
        tasks: Where they are performed: cancelling it ends them all.
        limit: Runs of one principal at once.
    """

    def __init__(self, tasks: TaskGroup, limit: int) -> None:
        self._tasks = tasks
        self._limit = limit
        self._runs: dict[str, LiveRun] = {}

    def get(self, run_id: str) -> LiveRun | None:
        """A run that is under way here, or was until lately."""
        return self._runs.get(run_id)

    def admit(self, principal: str | None) -> None:
        """Raise `UsageError` where as many runs are under way as there may be."""
        at_work = [run for run in self._runs.values() if not run.has_ended]
        if sum(run.principal == principal for run in at_work) >= self._limit:
            raise UsageError(
                f"{self._limit} runs of yours are under way; wait until one of them has ended "
                "(rlmRuns lists them), or end one with rlmCancel."
            )

    def start(self, run_id: str, principal: str | None, perform: Perform) -> LiveRun:
        """Let a run begin. Raises `UsageError` when this very run is under way."""
        before = self._runs.get(run_id)
        if before and not before.has_ended:
            raise UsageError(f"{run_id} is under way; wait for it with rlmResult.")
        live = self._runs[run_id] = LiveRun(run_id, principal)
        self._tasks.start_soon(live.perform, perform)
        ended = [run for run in self._runs.values() if run.has_ended]
        for run in ended[:-RECENT]:
            del self._runs[run.run_id]
        return live
