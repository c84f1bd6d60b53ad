"""The MCP server itself: one factory for every transport."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

from mcp.server.caching import CacheableMethod, CacheHint
from mcp.server.mcpserver import MCPServer

from vers_rlm_mcp import __version__

from .rlm_tools import RlmTools
from .vm_tools import VmTools

if TYPE_CHECKING:
    from mcp.server.auth.provider import TokenVerifier
    from mcp.server.auth.settings import AuthSettings

    from .app import Application

Lifespan = Callable[[MCPServer[Any]], AbstractAsyncContextManager[Any]]

INSTRUCTIONS = """\
A sandboxed Linux machine to think with, which can be snapshotted, branched and restored, and \
Recursive Language Models that work in it. Give vers_rlm a task that is too big for one context \
(large files, codebases, logs, many steps); use exec, python, readFile and writeFile to work in \
a machine yourself. Snapshot before anything risky; branch to try several ways in parallel."""

LISTS_TTL_MS = 5 * 60 * 1000
"""How long a client may go on with the lists it has: they change only with another start of the
server, with other settings or of another version."""

CACHE_HINTS: Mapping[CacheableMethod, CacheHint] = dict.fromkeys(
    ("server/discover", "tools/list"), CacheHint(LISTS_TTL_MS, "public")
)
"""What is the same for every client, whoever it is."""


def create_server(
    app: Application,
    *,
    lifespan: Lifespan | None = None,
    auth: AuthSettings | None = None,
    token_verifier: TokenVerifier | None = None,
) -> MCPServer[Any]:
    """The MCP server of an application, with all its tools, not yet serving.

    Args:
        app: What the tools act on. Whoever serves opens it.
        lifespan: What the SDK enters around every stdio or SSE connection, or around all the
            connections over Streamable HTTP.
        auth: For HTTP with a token, together with `token_verifier`.
        token_verifier: Checks bearer tokens.
    """
    return MCPServer(
        "vers-rlm",
        title="Vers RLM",
        description="A whole machine to think with, and Recursive Language Models that use it",
        instructions=INSTRUCTIONS,
        version=__version__,
        tools=[*RlmTools(app).tools(), *VmTools(app).tools()],
        auth=auth,
        token_verifier=token_verifier,
        lifespan=lifespan,
        cache_hints=CACHE_HINTS,
    )
