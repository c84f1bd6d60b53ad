# ruff: noqa: PLC0415 - the rooms below are imported by the first call
"""Runs as tasks of the tasks extension: a task's id is its run's."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from anyio import to_thread
from mcp_types import INTERNAL_ERROR, ErrorData

from .bounds import shorten
from .run_answers import describe_run
from .task_extension import Task, Tasks

if TYPE_CHECKING:
    from .application import Application

MESSAGE_CHARS: Final = 200
"""Characters of a task's status message: clients show it on a line."""


class RunTasks(Tasks):
    """The runs of an application as tasks."""

    task_tools = frozenset({"vers_rlm", "rlmResume"})

    def __init__(self, app: Application) -> None:
        self._app = app

    async def task(self, task_id: str) -> Task:
        """A run as a task. The result of a failed run is an error of the tool."""
        from vers_rlm_mcp.runs import summary

        journal, live = await self._app.find_run(task_id)
        answer = await describe_run(self._app, task_id)
        run = await to_thread.run_sync(summary, journal)
        task = partial(Task, id=task_id, started_at=run.started_at, updated_at=run.updated_at)
        message = shorten(answer.text.partition("\n")[0], MESSAGE_CHARS)
        match answer.fields["status"]:
            case "running":
                doing = shorten(live.doing if live else "", MESSAGE_CHARS)
                return task(status="working", message=doing)
            case "cancelled":
                return task(status="cancelled", message=message)
            case "broken off":
                error = ErrorData(code=INTERNAL_ERROR, message=answer.text)
                return task(status="failed", message=message, error=error)
            case status:
                result = answer.as_result(is_error=status == "failed")
                return task(status="completed", message=message, result=result)

    async def cancel(self, task_id: str) -> None:
        """Cancel the run of a task. One that another process performs continues."""
        _, live = await self._app.find_run(task_id)
        if live:
            live.cancel()
