# ruff: noqa: PLC0415 - the rooms below are imported by the first call
"""Runs detached from the calls that began them: waited for, asked for again, ended, or tasks."""

from __future__ import annotations

from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, Final

import anyio
from anyio import to_thread
from mcp_types import INTERNAL_ERROR, ErrorData

from vers_rlm_mcp.errors import UsageError

from .machine_answers import cut
from .progress import Progress
from .run_answers import RunAnswer, RunsAnswer
from .task_extension import TASK_SECONDS, Task, Tasks, takes_tasks
from .toolset import as_result
from .waiting import patience

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from contextlib import AsyncExitStack
    from pathlib import Path

    from mcp.server.mcpserver import Context

    from vers_rlm_mcp.rlm import Event
    from vers_rlm_mcp.runs import Records, RunRecord, RunResult

    from .application import Application
    from .live_runs import LiveRun
    from .waiting import Cancellations

PASSING: Final = frozenset({"tool_called", "sub_call_started", "sub_call_finished"})
"""Kinds of events of which a run may have thousands; a client is shown the latest."""

POLL_SECONDS: Final = 0.5
"""Between two looks at a run of another process."""

CANCEL_SECONDS: Final = 25.0
"""What the end of a cancelled run is waited for, clean-up included, which is bounded below it."""

MESSAGE_CHARS: Final = 200
"""Characters of a task's status message: clients show it on a line."""


class DetachedRuns(Tasks):
    """The runs of a server as its tools and the extension for tasks see them.

    Args:
        app: Where they are performed and recorded.
        cancellations: Why calls were cancelled.
    """

    task_tools = frozenset({"vers_rlm", "rlmResume"})

    def __init__(self, app: Application, cancellations: Cancellations) -> None:
        self._app = app
        self._cancellations = cancellations

    async def begin(
        self,
        context: Context[Any, Any],
        run_id: str,
        perform: Callable[..., Awaitable[RunResult]],
        resources: AsyncExitStack,
        *,
        attached: bool,
    ) -> RunAnswer:
        """Let a run begin, and wait for it as long as its client does.

        Who cancels the call cancels the run, unless a client has only stopped waiting.

        Args:
            context: Of the call.
            run_id: Of the run.
            perform: Performs it; takes `on_event`.
            resources: What it needs, closed at its end.
            attached: Whether it needs the call, which then waits to the end.

        Raises:
            UsageError: The run is under way already.
            VersRlmError: What ended the run, within the wait.
        """
        from .spans import RunSpans

        async def performed(tell: Callable[[Event], None]) -> RunResult:
            async with resources:
                spans = resources.enter_context(RunSpans())

                def on_event(event: Event) -> None:
                    spans(event)
                    tell(event)

                return await perform(on_event=on_event)

        fleet = await self._app.fleet()
        try:
            live = self._app.live.start(run_id, fleet.principal, performed)
        except BaseException:
            await resources.aclose()
            raise
        seconds = TASK_SECONDS if takes_tasks(context) else self._patience(context)
        try:
            await self._listen(context, live, inf if attached else seconds)
        except anyio.get_cancelled_exc_class():
            if attached or not await self._cancellations.gave_up(context):
                live.cancel()
            raise
        if live.error:
            raise live.error
        return await self._answer(run_id)

    async def follow(
        self,
        context: Context[Any, Any],
        run_id: str,
        seconds: float | None,
        cursor: int | None,
    ) -> RunAnswer:
        """Wait for a run for so many seconds, or as long as the client does, and tell of it.

        Raises:
            UnknownHandle: There is no such run.
        """
        from vers_rlm_mcp.runs import is_open

        directory = await self._directory(run_id)
        most = self._patience(context)
        seconds = most if seconds is None else min(seconds, most)
        if live := self._app.live.get(run_id):
            await self._listen(context, live, seconds)
        else:
            async with Progress(context.report_progress, "The run"):
                with anyio.move_on_after(seconds):
                    while is_open(directory):  # noqa: ASYNC110 - it is of another process
                        await anyio.sleep(POLL_SECONDS)
        return await self._answer(run_id, cursor)

    async def listed(self, page: slice) -> RunsAnswer:
        """Runs on record, the newest first."""
        from vers_rlm_mcp.runs import summary, way_on

        fleet, records = await self._app.fleet(), await self.records()
        directories = await to_thread.run_sync(records.all)
        found = [await to_thread.run_sync(summary, path) for path in directories[::-1][page]]
        more = len(directories) > page.stop
        return RunsAnswer.of(
            [(run, way_on(fleet, run)) for run in found], page.stop if more else None
        )

    async def ids(self) -> Sequence[str]:
        """The runs on record, the newest first."""
        return [path.name for path in (await self.records()).all()[::-1]]

    async def end(self, run_id: str) -> RunAnswer:
        """Cancel a run, and wait for its clean-up.

        Raises:
            UnknownHandle: There is no such run.
            UsageError: It is another process that performs it.
        """
        from vers_rlm_mcp.runs import is_open

        directory = await self._directory(run_id)
        if live := self._app.live.get(run_id):
            live.cancel()
            await live.wait(CANCEL_SECONDS)
        elif is_open(directory):
            raise UsageError(f"{run_id} is under way in another process: end it there.")
        return await self._answer(run_id)

    async def task(self, task_id: str) -> Task:
        """A run as a task. One that failed has an error of the tool as its result."""
        run = await self.recorded(task_id)
        answer = await self._answer_about(run)
        task = partial(
            Task, task_id, started_at=run.summary.started_at, updated_at=run.summary.updated_at
        )
        match answer.status:
            case "running":
                live = self._app.live.get(task_id)
                return task(
                    status="working", message=cut(live.doing if live else "", MESSAGE_CHARS)
                )
            case "cancelled":
                return task(status="cancelled", message=_line(answer))
            case "broken off":
                error = ErrorData(code=INTERNAL_ERROR, message=answer.text())
                return task(status="failed", message=_line(answer), error=error)
            case _:
                result = as_result(answer, is_error=answer.status == "failed")
                return task(status="completed", message=_line(answer), result=result)

    async def cancel(self, task_id: str) -> None:
        """End the run of a task. One that another process performs goes on."""
        await self._directory(task_id)
        if live := self._app.live.get(task_id):
            live.cancel()

    async def _listen(self, context: Context[Any, Any], live: LiveRun, seconds: float) -> None:
        """Wait for a run, and tell the client meanwhile how it goes."""
        async with Progress(context.report_progress, "The run") as progress:
            progress.say(f"Run {live.run_id} is under way")
            with live.heard_by(partial(_tell, progress)):
                await live.wait(seconds)

    async def _answer(self, run_id: str, cursor: int | None = None) -> RunAnswer:
        return await self._answer_about(await self.recorded(run_id), cursor)

    async def _answer_about(self, run: RunRecord, cursor: int | None = None) -> RunAnswer:
        from vers_rlm_mcp.runs import way_on

        live = self._app.live.get(run.summary.id)
        if live and not live.has_ended:
            return RunAnswer.running(run, cursor)
        further = way_on(await self._app.fleet(), run.summary)
        # What is in memory is complete even where the disk was full.
        result = (live and live.result) or run.result
        if result:
            return RunAnswer.of(result, further, cursor)
        return RunAnswer.unfinished(run, further, cursor)

    async def recorded(self, run_id: str) -> RunRecord:
        """What is on record of a run. Raises `UnknownHandle`."""
        from vers_rlm_mcp.runs import recorded

        return await to_thread.run_sync(recorded, await self._directory(run_id))

    async def _directory(self, run_id: str) -> Path:
        return (await self.records()).of(run_id)

    async def records(self) -> Records:
        """The runs that whoever calls may see."""
        from vers_rlm_mcp.runs import Records

        return Records.seen_by(await self._app.fleet(), self._app.settings)

    def _patience(self, context: Context[Any, Any]) -> float:
        return patience(context, self._app.settings.wait_seconds)


def _tell(progress: Progress, event: Event) -> None:
    from vers_rlm_mcp.rlm import InChild, narrate

    message = narrate(event)
    if message:
        inner = event.event if isinstance(event, InChild) else event
        progress.say(message, passing=inner.kind() in PASSING)


def _line(answer: RunAnswer) -> str:
    """How a run ended, on a line."""
    return cut(answer.text().partition("\n")[0], MESSAGE_CHARS)
