"""What the tests of a running server have in common."""

from __future__ import annotations

import json
import os
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import httpx2
from anyio.streams.text import TextReceiveStream
from mcp import Client
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, TextContent

import user_data
from vers_rlm_mcp.server import Application, create_server
from vers_rlm_mcp.settings import Settings, variable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    from anyio.abc import Process
    from mcp import StdioServerParameters

COMMAND = str(Path(sys.executable).with_name("vers-rlm-mcp"))

POLL_SECONDS = 0.02

END_SECONDS = 10
"""What a server may take to end in these tests: a kernel's clean-up on a busy machine included."""


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


class StdioServer:
    """A stdio server whose every byte and signal is the test's."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._buffer = b""

    async def send(self, **message: Any) -> None:
        await self.send_bytes(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")

    async def send_bytes(self, data: bytes) -> None:
        assert self.process.stdin
        await self.process.stdin.send(data)

    async def request(self, number: int, method: str, **params: Any) -> None:
        await self.send(id=number, method=method, params=params)

    async def receive(self) -> dict[str, Any]:
        assert self.process.stdout
        with anyio.fail_after(20):
            while b"\n" not in self._buffer:
                self._buffer += await self.process.stdout.receive()
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    async def initialize(self) -> dict[str, Any]:
        client = {"name": "test", "version": "1"}
        await self.request(
            1, "initialize", protocolVersion="2025-11-25", capabilities={}, clientInfo=client
        )
        result = await self.receive()
        await self.send(method="notifications/initialized")
        return result

    async def exec(self, number: int, command: str) -> None:
        await self.request(number, "tools/call", name="exec", arguments={"command": command})

    async def end(self) -> int:
        with anyio.fail_after(END_SECONDS):
            return await self.process.wait()


@asynccontextmanager
async def started(
    stdio: StdioServerParameters, stderr: int | None = None
) -> AsyncGenerator[StdioServer]:
    async with await anyio.open_process([stdio.command], env=stdio.env, stderr=stderr) as process:
        try:
            yield StdioServer(process)
        finally:
            if process.returncode is None:
                process.kill()


@dataclass
class HttpServer:
    """A server process, and where it listens."""

    process: Process
    url: str

    @property
    def base(self) -> str:
        return self.url.rpartition("/")[0]


@asynccontextmanager
async def serve_http_in(
    environment: Mapping[str, str], *flags: str, env: Mapping[str, str] | None = None
) -> AsyncGenerator[HttpServer]:
    """A server process over HTTP, which is killed in the end if it has not ended."""
    process = await anyio.open_process(
        [COMMAND, "serve", "--port", "0", *flags],
        # Tests that wait for something ask for it all the time.
        env={**environment, "VERS_RLM_MAX_REQUESTS": "10000", **(env or {})},
        stdout=None,
    )
    log = _Log(process)
    try:
        async with anyio.create_task_group() as tasks:
            url = await log.url()
            tasks.start_soon(log.drain)
            yield HttpServer(process, url)
            tasks.cancel_scope.cancel()
    finally:
        if process.returncode is None:
            process.kill()
        with anyio.CancelScope(shield=True):
            await process.aclose()


class _Log:
    """What a server writes to standard error."""

    def __init__(self, process: Process) -> None:
        assert process.stderr
        self._stream = TextReceiveStream(process.stderr)

    async def url(self) -> str:
        text = ""
        with anyio.fail_after(20):
            while "Serving MCP at " not in text or not text.endswith("\n"):
                text += await self._stream.receive()
        return text.partition("Serving MCP at ")[2].split()[0]

    async def drain(self) -> None:
        async for _ in self._stream:
            pass
