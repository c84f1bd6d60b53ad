"""The MCP server of an application, for every transport."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING, Any

from mcp.server.caching import CacheableMethod, CacheHint
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, Icon

from vers_rlm_mcp import __version__
from vers_rlm_mcp.errors import SettingsError

from . import command_tools, file_tools, machine_tools, run_tools
from .application import NO_CURRENT
from .completions import Completions
from .mcp_prompts import prompts
from .rate_limits import CallLimit
from .request_faults import explain_faults, take_arguments
from .resources import add_resources, list_runs
from .run_tasks import RunTasks
from .task_extension import TaskExtension

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from mcp.shared._stream_protocols import ReadStream, WriteStream
    from mcp.shared.message import SessionMessage
    from mcp_types import CallToolResult, GetPromptResult, InputRequiredResult, Resource

    from vers_rlm_mcp.settings import Settings

    from .application import Application
    from .task_extension import Tasks
    from .toolset import StrictTool

Lifespan = Callable[[MCPServer[Any]], AbstractAsyncContextManager[Any]]

TOOLS = {
    "rlm": run_tools.TOOLS.tools,
    "vm": [*command_tools.TOOLS.tools, *file_tools.TOOLS.tools, *machine_tools.TOOLS.tools],
}
"""The tools of each toolset that settings can choose, in the order in which clients list them."""

INSTRUCTIONS = "Sandboxed Linux VMs."
"""Of the instructions some clients show 240 characters, others nothing else of this server."""

RLM_INSTRUCTIONS = """\
 vers_rlm: for files, logs, data or codebases too big for your context, and work of many steps; an \
agent does it in a VM and returns typed outputs."""

VM_INSTRUCTIONS = """\
 exec, python, readFile: work in a VM yourself; vmSnapshot, vmBranch: try several ways."""

RLM_DETAILS = """\
 Where vers_rlm answers that the run is still running, rlmResult waits for it: pass the cursor of \
the last answer."""

VM_DETAILS = """\
 Snapshot before anything risky, go back with vmRestore. With vmIds, exec and python run in \
several VMs at once."""

BRANCH = b"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="-2 0 24 24" fill="none" \
stroke="#7c3aed" stroke-width="2"><path d="M6 8v8M8 6h2q4 0 4 4v2"/><circle cx="6" cy="6" r="2"/>\
<circle cx="6" cy="18" r="2"/><circle cx="14" cy="14" r="2"/></svg>"""
"""The icon. It is part of every answer in the revision 2026-07-28, and so is small."""

ICON = Icon(
    src=f"data:image/svg+xml;base64,{base64.b64encode(BRANCH).decode()}",
    mime_type="image/svg+xml",
    sizes=["any"],
)

NAME_CHARS = 60
"""Characters of an unknown tool's name that an error repeats."""

LISTS_TTL_MS = 5 * 60 * 1000
"""How long a client may cache lists: they change only when the server is started again with other
settings or in another version."""

CACHE_HINTS: Mapping[CacheableMethod, CacheHint] = dict.fromkeys(
    ("server/discover", "tools/list", "prompts/list"), CacheHint(LISTS_TTL_MS, "public")
)
"""Answers that are the same for every client."""


class Server(MCPServer[Any]):
    """An MCP server for any transport. A wrong request for a prompt is the client's error."""

    list_runs: Callable[[], Awaitable[Sequence[Resource]]] | None = None
    """The runs that are listed as resources."""

    async def serve(
        self, received: ReadStream[SessionMessage | Exception], sent: WriteStream[SessionMessage]
    ) -> None:
        """Serve one connection until what it receives ends."""
        options = self._lowlevel_server.create_initialization_options()
        await self._lowlevel_server.run(received, sent, options)

    async def list_resources(self) -> list[Resource]:
        """The resources that are listed, besides the templates."""
        runs = await self.list_runs() if self.list_runs else ()
        return [*await super().list_resources(), *runs]

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Any, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        """Call a tool.

        Raises:
            ToolError: There is no such tool, or it failed.
        """
        known = [tool.name for tool in await self.list_tools()]
        if name not in known:
            raise ToolError(_describe_unknown(name, known))
        return await super().call_tool(name, arguments, context)

    async def _as_free_text(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
        """The argument of a prompt, with what was given by other names added to its text."""
        prompts = {prompt.name: prompt for prompt in await self.list_prompts()}
        arguments = (prompts[name].arguments or ()) if name in prompts else ()
        if len(arguments) != 1 or not given.keys() - {arguments[0].name}:
            return given
        own = arguments[0].name
        parts = [text if key == own else f"{key}: {text}" for key, text in given.items()]
        return {own: "; ".join(parts)}

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
        given = await self._as_free_text(name, arguments or {})
        try:
            return await super().get_prompt(name, given, context)
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

    tools = _tools(app.settings, has_current=app.has_current)
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
    if "rlmResult" in names:
        server.list_runs = partial(list_runs, app)
    server.completion()(
        Completions(
            {
                "vmId": lambda _: app.machine_ids(),
                "runId": lambda _: app.run_ids(),
                "step": lambda given: app.step_numbers(given["runId"]),
                "name": lambda given: app.output_names(given["runId"]),
            }
        )
    )
    return server


def _tools(settings: Settings, *, has_current: bool) -> list[StrictTool]:
    chosen = [tool for name in TOOLS if name in settings.toolsets for tool in TOOLS[name]]
    if settings.read_only:
        chosen = [tool for tool in chosen if tool.annotations and tool.annotations.read_only_hint]
    if not has_current:
        changed = [tool.where_no_machine_is_current() for tool in chosen]
        chosen = [tool for tool in changed if tool]
    if not chosen:
        raise SettingsError(
            "No tool is left to offer: choose other --toolsets, or leave out --read-only."
        )
    return [tool.always_loaded() for tool in chosen] if settings.always_load else chosen


def _describe_unknown(name: str, known: Sequence[str]) -> str:
    everywhere = {tool.name: tool for tools in TOOLS.values() for tool in tools}
    if name in everywhere and everywhere[name].without_current == "":
        return f"{NO_CURRENT}. Pass vmId to each call; vmList shows the ids."
    if name in everywhere:
        return f"This server does not offer {name}: its --toolsets or --read-only leave it out."
    plain = {each.lower(): each for each in known}
    close = get_close_matches(name.lower().replace("_", "").replace("-", ""), plain, n=1)
    meant = f" (did you mean {plain[close[0]]}?)" if close else ""
    return f"There is no tool {name[:NAME_CHARS]!r}{meant}. There are: {', '.join(known)}."


def _instructions(tools: Container[str]) -> str:
    parts = (
        ("vers_rlm", RLM_INSTRUCTIONS),
        ("exec", VM_INSTRUCTIONS),
        ("vers_rlm", RLM_DETAILS),
        ("exec", VM_DETAILS),
    )
    return INSTRUCTIONS + "".join(text for name, text in parts if name in tools)
