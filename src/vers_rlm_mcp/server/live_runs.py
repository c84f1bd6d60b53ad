# ruff: noqa: PLC0415 - the rooms below are imported by the first call
"""Runs under way in this process, which continue when their calls have been answered or dropped."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from math import inf
from typing import TYPE_CHECKING

import anyio

from vers_rlm_mcp.errors import UsageError, VersRlmError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator
    from contextlib import AsyncExitStack

    from anyio.abc import TaskGroup

    from vers_rlm_mcp.rlm import Event
    from vers_rlm_mcp.runs import RunResult

    Perform = Callable[..., Awaitable[RunResult]]
    """Performs a run, and passes its events to its argument `on_event`."""

RECENT = 16
"""Ended runs whose results are kept here: the disk may have been full."""

logger = logging.getLogger(__name__)


class LiveRun:
    """A run under way in this process, or one that has ended.

    Args:
        run_id: The run's id.
        principal: The caller that it belongs to.
    """

    def __init__(self, run_id: str, principal: str | None) -> None:
        self.run_id = run_id
        self.principal = principal
        self.doing = ""
        """The narration of its latest event."""
        self.steps = (0, 0)
        """How many steps are done, and how many it may have; 0 if that is not known yet."""
        self.result: RunResult | None = None
        """Its result; None while it is under way, and if it failed or was cancelled."""
        self.error: Exception | None = None
        """Why it failed."""
        self._ended = anyio.Event()
        self._scope = anyio.CancelScope()
        self._subscribers: list[Callable[[Event], None]] = []

    @property
    def has_ended(self) -> bool:
        """Whether it has ended, clean-up included."""
        return self._ended.is_set()

    async def wait(self, seconds: float = inf) -> None:
        """Wait for its end, clean-up included, but no longer than this."""
        with anyio.move_on_after(seconds):
            await self._ended.wait()

    def cancel(self) -> None:
        """Cancel it; `wait` waits for its clean-up."""
        self._scope.cancel()

    @contextmanager
    def subscribe(self, subscriber: Callable[[Event], None]) -> Generator[None]:
        """Pass its events to a subscriber inside the ``with``. The subscriber must not block."""
        self._subscribers.append(subscriber)
        try:
            yield
        finally:
            self._subscribers.remove(subscriber)

    async def perform(self, perform: Perform, resources: AsyncExitStack) -> None:
        """Perform it, then close its resources. An error is kept for those who wait."""
        from .spans import RunSpans

        try:
            with self._scope:
                async with resources:
                    with RunSpans() as spans, self.subscribe(spans):
                        self.result = await perform(on_event=self._publish)
        except VersRlmError as error:
            self.error = error
        except Exception as error:
            logger.exception("%s ended on a fault of this server", self.run_id)
            self.error = error
        finally:
            self._ended.set()

    def _publish(self, event: Event) -> None:
        from vers_rlm_mcp.rlm import StepFinished
        from vers_rlm_mcp.runs import narrate
        from vers_rlm_mcp.runs.events import RunStarted

        self.doing = narrate(event) or self.doing
        if isinstance(event, RunStarted):
            self.steps = (0, event.max_steps)
        elif isinstance(event, StepFinished):
            self.steps = (event.step, event.max_steps)
        for subscriber in self._subscribers:
            subscriber(event)


class LiveRuns:
    """The runs under way in this process, and the latest that have ended.

    Args:
        tasks: Performs them; cancelling it ends them all.
        limit: How many runs one principal may have under way.
    """

    def __init__(self, tasks: TaskGroup, limit: int) -> None:
        self._tasks = tasks
        self._limit = limit
        self._runs: dict[str, LiveRun] = {}

    def get(self, run_id: str) -> LiveRun | None:
        """A run that is under way here, or ended lately."""
        return self._runs.get(run_id)

    def admit(self, principal: str | None) -> None:
        """Raise `UsageError` if the principal has as many runs under way as it may."""
        under_way = [run for run in self._runs.values() if not run.has_ended]
        if sum(run.principal == principal for run in under_way) >= self._limit:
            raise UsageError(
                f"{self._limit} runs of yours are under way; wait until one of them has ended "
                "(rlmRuns lists them), or end one with rlmCancel."
            )

    def start(
        self, run_id: str, principal: str | None, perform: Perform, resources: AsyncExitStack
    ) -> LiveRun:
        """Start a run, which takes over the resources that it needs.

        Raises:
            UsageError: This very run is under way; the resources stay the caller's.
        """
        former = self._runs.get(run_id)
        if former and not former.has_ended:
            raise UsageError(f"{run_id} is under way; wait for it with rlmResult.")
        live = self._runs[run_id] = LiveRun(run_id, principal)
        self._tasks.start_soon(live.perform, perform, resources.pop_all())
        ended = [run for run in self._runs.values() if run.has_ended]
        for run in ended[:-RECENT]:
            del self._runs[run.run_id]
        return live
