"""The extension `io.modelcontextprotocol/tasks`: a call that takes long is answered with a task.

The client then polls the task (`tasks/get`) until it contains the call's result. A call becomes a
task if its client declares the extension and its tool answers that it is still `running`. Tasks are
not kept here but found by a `Tasks`, so that they live as long as what they stand for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, cast

from mcp.server.extension import Extension, MethodBinding
from mcp.shared.exceptions import MCPError
from mcp_types import (
    HEADER_MISMATCH,
    INVALID_PARAMS,
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    CallToolResult,
    ClientCapabilities,
    ErrorData,
    MissingRequiredClientCapabilityErrorData,
    RequestParams,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from vers_rlm_mcp.errors import UnknownHandle

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

    from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
    from mcp.server.mcpserver import Context
    from mcp_types import CallToolRequestParams

EXTENSION: Final = "io.modelcontextprotocol/tasks"

NAME_HEADER: Final = "mcp-name"
"""The HTTP header that repeats a request's task, for proxies that route by it."""

POLL_INTERVAL_MS: Final = 2000
"""How often a client should poll: a step of a run takes longer."""

TASK_SECONDS: Final = 1.0
"""A call that ends sooner does not become a task."""

MISSING: Final = MissingRequiredClientCapabilityErrorData(
    required_capabilities=ClientCapabilities(extensions={EXTENSION: {}})
)


@dataclass(frozen=True, slots=True)
class Task:
    """The state of a task."""

    id: str
    status: Literal["working", "input_required", "completed", "failed", "cancelled"]
    message: str
    started_at: float
    """Seconds since the epoch."""
    updated_at: float
    result: CallToolResult | None = None
    """Set if completed, even with an error that the tool reports."""
    error: ErrorData | None = None
    """Set if failed: there is no result and will be none."""
    input_requests: Mapping[str, Any] | None = None
    """Requests for the client to answer, by the names that `Tasks.update` takes."""

    def fields(self) -> dict[str, Any]:
        """The task on the wire, without its result."""
        return {
            "taskId": self.id,
            "status": self.status,
            "statusMessage": self.message,
            "createdAt": _iso(self.started_at),
            "lastUpdatedAt": _iso(self.updated_at),
            "ttlMs": None,  # until the record is pruned
            "pollIntervalMs": POLL_INTERVAL_MS,
        }

    def details(self) -> dict[str, Any]:
        """The task on the wire, with its result."""
        fields = self.fields() | {"resultType": "complete"}
        for name, part in (("result", self.result), ("error", self.error)):
            if part:
                fields[name] = part.model_dump(mode="json", by_alias=True, exclude_none=True)
        if self.input_requests:
            fields["inputRequests"] = dict(self.input_requests)
        return fields


class Tasks(ABC):
    """A source of tasks. A task is visible to its owner only."""

    task_tools: ClassVar[Container[str]]
    """The tools whose calls may become tasks."""

    @abstractmethod
    async def task(self, task_id: str) -> Task:
        """The state of a task. Raises `UnknownHandle`."""

    @abstractmethod
    async def cancel(self, task_id: str) -> None:
        """Cancel a task; one that has ended stays as it is. Raises `UnknownHandle`."""

    async def update(self, task_id: str, responses: Mapping[str, Any]) -> None:
        """Take the client's answers, ignoring those to unknown requests. Raises `UnknownHandle`."""
        del responses
        await self.task(task_id)


class TaskParams(RequestParams):
    """The parameters of a request about a task."""

    task_id: str


class UpdateParams(TaskParams):
    """The parameters of `tasks/update`."""

    input_responses: dict[str, Any]


class TaskExtension(Extension):
    """Serves the extension's methods.

    Args:
        sources: Where tasks are found, in this order.
    """

    identifier: str = EXTENSION

    def __init__(self, sources: Sequence[Tasks]) -> None:
        self._sources = sources

    def methods(self) -> Sequence[MethodBinding]:
        """The extension's request handlers."""
        handlers = (
            ("tasks/get", TaskParams, self._get),
            ("tasks/update", UpdateParams, self._update),
            ("tasks/cancel", TaskParams, self._cancel),
        )
        versions = frozenset(MODERN_PROTOCOL_VERSIONS)
        return [MethodBinding(*handler, versions) for handler in handlers]

    async def intercept_tool_call(
        self,
        params: CallToolRequestParams,
        ctx: ServerRequestContext[Any, Any],
        call_next: CallNext,
    ) -> HandlerResult:
        """Answer with a task if the call's answer says that it is still running."""
        result = await call_next(ctx)
        if not (takes_tasks(ctx) and isinstance(result, CallToolResult)):
            return result
        answer = cast("dict[str, Any]", result.structured_content or {})
        for source in self._sources:
            if params.name in source.task_tools and answer.get("status") == "running":
                task = await source.task(answer["run_id"])
                return task.fields() | {"resultType": "task"}
        return result

    async def _get(self, ctx: ServerRequestContext[Any, Any], params: TaskParams) -> HandlerResult:
        _, task = await self._find(ctx, params.task_id)
        return task.details()

    async def _update(
        self, ctx: ServerRequestContext[Any, Any], params: UpdateParams
    ) -> HandlerResult:
        source, _ = await self._find(ctx, params.task_id)
        await source.update(params.task_id, params.input_responses)
        return {"resultType": "complete"}

    async def _cancel(
        self, ctx: ServerRequestContext[Any, Any], params: TaskParams
    ) -> HandlerResult:
        source, _ = await self._find(ctx, params.task_id)
        await source.cancel(params.task_id)
        return {"resultType": "complete"}

    async def _find(self, ctx: ServerRequestContext[Any, Any], task_id: str) -> tuple[Tasks, Task]:
        if not takes_tasks(ctx):
            raise MCPError(
                MISSING_REQUIRED_CLIENT_CAPABILITY,
                f"This needs a client that declares the extension {EXTENSION}.",
                MISSING.model_dump(mode="json", by_alias=True, exclude_none=True),
            )
        if ctx.request and ctx.request.headers.get(NAME_HEADER, task_id) != task_id:
            raise MCPError(HEADER_MISMATCH, f"The header {NAME_HEADER} names another task.")
        unknown = UnknownHandle(f"There is no task {task_id!r}.")
        for source in self._sources:
            try:
                return source, await source.task(task_id)
            except UnknownHandle as error:
                unknown = error
        raise MCPError(INVALID_PARAMS, str(unknown))


def takes_tasks(ctx: ServerRequestContext[Any, Any] | Context[Any, Any]) -> bool:
    """Whether the client of a call understands tasks."""
    capabilities = ctx.session.client_capabilities
    declared = capabilities.extensions if capabilities else None
    return ctx.protocol_version in MODERN_PROTOCOL_VERSIONS and EXTENSION in (declared or {})


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
