"""What the tests of a running server have in common."""

from __future__ import annotations

import os
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import httpx2
from mcp import Client
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, TextContent

import user_data
from vers_rlm_mcp.server import Application, create_server
from vers_rlm_mcp.settings import Settings, variable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

COMMAND = str(Path(sys.executable).with_name("vers-rlm-mcp"))

POLL_SECONDS = 0.02


def environment_in(home: Path) -> dict[str, str]:
    """The environment of a server, with a state directory of its own and no keys."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "XDG_DATA_HOME": str(user_data.DIRECTORY),
        "VERS_RLM_STATE_DIR": str(home / "state"),
    }


def text_of(result: CallToolResult) -> str:
    content = result.content[0]  # links may follow
    assert isinstance(content, TextContent)
    return content.text


async def call(client: Client, tool: str, /, **arguments: Any) -> dict[str, Any]:
    """The structured content of a call that must succeed."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, text_of(result)
    assert result.structured_content is not None
    return result.structured_content


async def error(client: Client, tool: str, /, **arguments: Any) -> str:
    """The text of a call that must fail."""
    result = await client.call_tool(tool, arguments)
    assert result.is_error, text_of(result)
    return text_of(result)


async def vm_ids(client: Client) -> list[str]:
    return [vm["id"] for vm in (await call(client, "vmList"))["vms"]]


async def eventually(condition: Callable[[], bool], within: float) -> None:
    with anyio.fail_after(within):
        while not condition():  # noqa: ASYNC110 - it is another process that changes it
            await anyio.sleep(POLL_SECONDS)


def script(path: Path, *replies: str) -> str:
    """A scripted model, as `VERS_RLM_MODEL` names it. A reply is code, or a whole reply."""
    text = "".join(f"{reply if reply.startswith('--- ') else cell(reply)}\n" for reply in replies)
    path.write_text(text)
    return f"scripted:{path}"


def cell(code: str, reasoning: str = "Let me see.") -> str:
    return f"--- reply\n{reasoning}\n```python\n{code}\n```"


@asynccontextmanager
async def in_memory(environment: Mapping[str, str], **options: Any) -> AsyncGenerator[Client]:
    """A client of a server in this process, whose settings are these environment variables."""
    names = [name for name in Settings.model_fields if variable(name) in environment]
    settings = Settings.model_validate({name: environment[variable(name)] for name in names})
    async with (
        Application(settings, one_client=True) as app,
        Client(create_server(app), **options) as client,
    ):
        yield client


@asynccontextmanager
async def connected(
    url: str, mode: Any = "legacy", token: str | None = None
) -> AsyncGenerator[Client]:
    """A client over HTTP, or over SSE where that is what is served."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    if url.endswith("/sse"):
        async with Client(sse_client(url, headers=headers), mode=mode) as client:
            yield client
        return
    async with httpx2.AsyncClient(headers=headers, timeout=30) as http:
        transport = streamable_http_client(url, http_client=http)
        async with Client(transport, mode=mode) as client:
            yield client
