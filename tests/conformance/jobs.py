"""The tools whose calls become tasks. A job needs nobody to work on it: it tells by the clock."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio
from mcp.server.mcpserver import Context  # noqa: TC002 - read from annotations by the SDK
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INTERNAL_ERROR,
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    CallToolResult,
    ElicitRequest,
    ElicitResult,
    ErrorData,
    InputRequiredResult,
    TextContent,
)

from vers_rlm_mcp.errors import UnknownHandle
from vers_rlm_mcp.server.task_extension import MISSING, Task, Tasks, takes_tasks

from .rounds import given, need, question

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mcp.server.mcpserver import MCPServer

FAILING_SECONDS = 1.0


@dataclass
class Job:
    """Something that is done after a while, or when all its questions are answered."""

    seconds: float = 0.0
    says: str = "Done."
    fails: bool = False
    breaks: bool = False
    pending: dict[str, ElicitRequest] = field(default_factory=dict[str, ElicitRequest])
    cancelled_at: float | None = None
    started_at: float = field(default_factory=time.time)
    id: str = field(default_factory=lambda: f"job-{uuid4()}")

    @property
    def status(self) -> Any:
        ends_at = self.started_at + self.seconds
        if self.cancelled_at is not None and self.cancelled_at < ends_at:
            return "cancelled"
        if self.pending:
            return "input_required" if self.cancelled_at is None else "cancelled"
        if time.time() < ends_at:
            return "working"
        return "failed" if self.breaks else "completed"

    @property
    def result(self) -> CallToolResult:
        return CallToolResult(content=[TextContent(text=self.says)], is_error=self.fails)


class Jobs(Tasks):
    """The tools, and what became of their calls."""

    task_tools = frozenset(
        {
            "slow_compute",
            "failing_job",
            "protocol_error_job",
            "confirm_delete",
            "multi_input",
            "test_tool_with_task",
        }
    )

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}

    def mount(self, server: MCPServer[Any]) -> None:
        """Add the tools to a server."""
        for tool in (
            greet,
            self.slow_compute,
            self.failing_job,
            self.protocol_error_job,
            self.confirm_delete,
            self.multi_input,
            self.test_tool_with_task,
        ):
            server.add_tool(tool, structured_output=False)

    async def slow_compute(self, seconds: float, context: Context, label: str = "") -> Any:
        """Take a while."""
        if not takes_tasks(context):
            await anyio.sleep(seconds)
            return f"Computed {label}."
        return self._started(Job(seconds, f"Computed {label}."))

    def failing_job(self, context: Context) -> Any:
        """Fail after a while; only as a task."""
        if not takes_tasks(context):
            raise MCPError(
                MISSING_REQUIRED_CLIENT_CAPABILITY,
                "This tool needs tasks",
                MISSING.model_dump(by_alias=True, mode="json", exclude_none=True),
            )
        return self._started(Job(FAILING_SECONDS, "It failed.", fails=True))

    def protocol_error_job(self) -> Any:
        """Break."""
        return self._started(Job(breaks=True))

    def confirm_delete(self, filename: str) -> Any:
        """Ask before something is deleted."""
        ask = question(f"Delete {filename}?", confirm="boolean")
        return self._started(Job(pending={"confirm": ask}))

    def multi_input(self) -> Any:
        """Ask two things at once."""
        asked = {name: question(f"What is your {name}?", **{name: "string"}) for name in ("a", "b")}
        return self._started(Job(pending=asked))

    def test_tool_with_task(self, context: Context) -> Any | InputRequiredResult:
        """Ask for a name, and greet after a while."""
        answer = given(context, "user_name", ElicitResult)
        if answer is None:
            return need(user_name=question("What is your name?", name="string"))
        return self._started(Job(says=f"Hello, {(answer.content or {}).get('name')}!"))

    async def task(self, task_id: str) -> Task:
        """The state of a job."""
        job = self._job(task_id)
        return Task(
            job.id,
            job.status,
            "At work" if job.status == "working" else job.says,
            job.started_at,
            time.time(),
            result=job.result if job.status == "completed" else None,
            error=ErrorData(code=INTERNAL_ERROR, message="It broke.")
            if job.status == "failed"
            else None,
            input_requests=_dumped(job.pending) if job.status == "input_required" else None,
        )

    async def cancel(self, task_id: str) -> None:
        """End a job."""
        job = self._job(task_id)
        if job.status in ("working", "input_required"):
            job.cancelled_at = time.time()

    async def update(self, task_id: str, responses: Mapping[str, Any]) -> None:
        """Take the answers that were asked for."""
        job = self._job(task_id)
        job.pending = {key: ask for key, ask in job.pending.items() if key not in responses}

    def _started(self, job: Job) -> CallToolResult:
        self._jobs[job.id] = job
        return CallToolResult(
            content=[], structured_content={"status": "running", "run_id": job.id}
        )

    def _job(self, task_id: str) -> Job:
        if task_id not in self._jobs:
            raise UnknownHandle(f"There is no job {task_id!r}.")
        return self._jobs[task_id]


def greet(name: str) -> str:
    """Greet at once."""
    return f"Hello, {name}!"


def _dumped(pending: Mapping[str, ElicitRequest]) -> dict[str, Any]:
    return {
        key: ask.model_dump(mode="json", by_alias=True, exclude_none=True)
        for key, ask in pending.items()
    }
