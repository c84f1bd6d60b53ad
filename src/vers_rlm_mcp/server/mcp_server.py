"""The MCP server of an application, for every transport."""

from __future__ import annotations

import base64
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

from mcp.server.caching import CacheableMethod, CacheHint
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.tools import Tool
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, Icon

from vers_rlm_mcp import __version__
from vers_rlm_mcp.errors import SettingsError

from . import command_tools, machine_tools, run_tools
from .completions import Completions
from .mcp_prompts import prompts
from .rate_limits import CallLimit
from .request_faults import explain_faults, take_arguments
from .resources import add_resources
from .run_tasks import RunTasks
from .task_extension import TaskExtension

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from mcp.shared._stream_protocols import ReadStream, WriteStream
    from mcp.shared.message import SessionMessage
    from mcp_types import GetPromptResult, InputRequiredResult

    from vers_rlm_mcp.settings import Settings

    from .application import Application
    from .task_extension import Tasks
    from .toolset import StrictTool

Lifespan = Callable[[MCPServer[Any]], AbstractAsyncContextManager[Any]]

TOOLS = {
    "rlm": run_tools.TOOLS.tools,
    "vm": [*command_tools.TOOLS.tools, *machine_tools.TOOLS.tools],
}
"""The tools of each toolset that settings can choose, in the order in which clients list them."""

INSTRUCTIONS = """\
A sandboxed Linux machine to think with, which can be snapshotted, branched and restored, and \
Recursive Language Models that work in it."""

RLM_INSTRUCTIONS = """\
 Give vers_rlm a task that is too big for one context (large files, codebases, logs, many steps); \
where it answers that the run is still running, rlmResult waits for it."""

VM_INSTRUCTIONS = """\
 Use exec, python, readFile and writeFile to work in a machine yourself. Snapshot before anything \
risky; branch to try several ways in parallel."""

BRANCH = b"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="-2 0 24 24" fill="none" \
stroke="#7c3aed" stroke-width="2"><path d="M6 8v8M8 6h2q4 0 4 4v2"/><circle cx="6" cy="6" r="2"/>\
<circle cx="6" cy="18" r="2"/><circle cx="14" cy="14" r="2"/></svg>"""
"""The icon. It is part of every answer in the revision 2026-07-28, and so is small."""

ICON = Icon(
    src=f"data:image/svg+xml;base64,{base64.b64encode(BRANCH).decode()}",
    mime_type="image/svg+xml",
    sizes=["any"],
)

LISTS_TTL_MS = 5 * 60 * 1000
"""How long a client may cache lists: they change only when the server is started again with other
settings or in another version."""

CACHE_HINTS: Mapping[CacheableMethod, CacheHint] = dict.fromkeys(
    ("server/discover", "tools/list", "prompts/list"), CacheHint(LISTS_TTL_MS, "public")
)
"""Answers that are the same for every client."""


class Server(MCPServer[Any]):
    """An MCP server for any transport. A wrong request for a prompt is the client's error."""

    async def serve(
        self, received: ReadStream[SessionMessage | Exception], sent: WriteStream[SessionMessage]
    ) -> None:
        """Serve one connection until what it receives ends."""
        options = self._lowlevel_server.create_initialization_options()
        await self._lowlevel_server.run(received, sent, options)

    async def get_prompt(
        self,
        name: str,
        arguments: dict[str, Any] | None = None,
        context: Context[Any, Any] | None = None,
    ) -> GetPromptResult | InputRequiredResult:
        """A prompt.

        Raises:
            MCPError: There is no such prompt, or arguments are missing.
        """
        try:
            return await super().get_prompt(name, arguments, context)
        except ValueError as error:
            raise MCPError(INVALID_PARAMS, str(error)) from error


def create_server(
    app: Application,
    *,
    lifespan: Lifespan | None = None,
    tasks: Sequence[Tasks] = (),
) -> Server:
    """Make the MCP server of an application, with all its tools, not yet serving.

    Args:
        app: What the tools act on. The transport opens it.
        lifespan: Entered by the SDK around every stdio or SSE connection, or around all connections
            over Streamable HTTP; yields `app`.
        tasks: Further sources of tasks, besides runs.

    Raises:
        SettingsError: The settings leave no tool to offer.
    """

    @asynccontextmanager
    async def opened_elsewhere(_: object) -> AsyncGenerator[Application]:
        yield app

    tools = _tools(app.settings)
    names = {tool.name for tool in tools}
    server = Server(
        "vers-rlm",
        title="Vers RLM",
        description="A whole machine to think with, and Recursive Language Models that use it",
        instructions=_instructions(names),
        version=__version__,
        tools=list[Tool](tools),
        lifespan=lifespan or opened_elsewhere,
        cache_hints=CACHE_HINTS,
        icons=[ICON],
        extensions=[TaskExtension([RunTasks(app), *tasks])],
    )
    server.middleware.append(explain_faults)
    server.middleware.append(take_arguments)
    server.middleware.append(app.cancellations)
    server.middleware.append(CallLimit(app.settings.max_calls))
    for prompt in prompts(names):
        server.add_prompt(prompt)
    add_resources(server, names)
    server.completion()(Completions({"vmId": app.machine_ids, "runId": app.run_ids}))
    return server


def _tools(settings: Settings) -> list[StrictTool]:
    chosen = [tool for name in TOOLS if name in settings.toolsets for tool in TOOLS[name]]
    if settings.read_only:
        chosen = [tool for tool in chosen if tool.annotations and tool.annotations.read_only_hint]
    if not chosen:
        raise SettingsError(
            "No tool is left to offer: choose other --toolsets, or leave out --read-only."
        )
    return chosen


def _instructions(tools: Container[str]) -> str:
    parts = {"vers_rlm": RLM_INSTRUCTIONS, "exec": VM_INSTRUCTIONS}
    return INSTRUCTIONS + "".join(parts[name] for name in parts if name in tools)
