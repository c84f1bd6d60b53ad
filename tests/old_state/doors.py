"""The doors to a state directory: the command, and servers over stdio and HTTP."""

from __future__ import annotations

import os
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio
import httpx2
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from plays import MODEL

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from anyio.abc import Process

COMMAND: Final = str(Path(sys.executable).with_name("vers-rlm-mcp"))

TOKEN: Final = "the-token-of-a-client-0123456789"
"""Of the HTTP client that has a machine and a run of its own in the frozen states."""

WAIT_SECONDS: Final = 90.0
"""Far more than anything here takes, on a busy computer too."""


@dataclass(kw_only=True)
class Doors:
    """Processes that work with the state directory in `home`.

    `settings` is what their environment says besides, as to where machines come from.
    """

    home: Path
    model_url: str
    settings: Mapping[str, str]

    @property
    def state(self) -> Path:
        return self.home / "state"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "VERS_RLM_STATE_DIR": str(self.state),
            "VERS_RLM_MODEL": MODEL,
            "VERS_RLM_CHECKPOINTS": "step",
            "VERS_RLM_MAX_MACHINES": "64",
            "OPENAI_BASE_URL": self.model_url,
            **self.settings,
        }

    async def command(self, *arguments: str, fails: bool = False, **settings: str) -> str:
        """The output of a command, which must succeed unless it `fails`."""
        with anyio.fail_after(WAIT_SECONDS):
            argv, env = [COMMAND, *arguments], self.environment | settings
            done = await anyio.run_process(argv, env=env, cwd=self.home, check=False)
        assert (done.returncode != 0) == fails, done.stderr.decode()
        return done.stdout.decode()

    @asynccontextmanager
    async def client(self, **settings: str) -> AsyncGenerator[Client]:
        """A client of a stdio server of its own."""
        server = StdioServerParameters(command=COMMAND, env=self.environment | settings)
        async with Client(stdio_client(server), mode="legacy") as client:
            yield client

    @asynccontextmanager
    async def http_client(self, token: str) -> AsyncGenerator[Client]:
        """A client that presents this token to an HTTP server of its own."""
        argv = [COMMAND, "serve", "--transport", "http", "--port", "0"]
        env = self.environment | {"VERS_RLM_TOKEN": token}
        async with await anyio.open_process(argv, env=env) as server:
            try:
                url = await _url(server)
                headers = {"Authorization": f"Bearer {token}"}
                async with (
                    httpx2.AsyncClient(headers=headers, timeout=WAIT_SECONDS) as http,
                    Client(streamable_http_client(url, http_client=http), mode="legacy") as client,
                ):
                    yield client
            finally:
                server.terminate()


async def call(client: Client, tool: str, /, **arguments: Any) -> dict[str, Any]:
    """The structured content of a call that must succeed."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result
    assert result.structured_content is not None
    return result.structured_content


async def _url(server: Process) -> str:
    """Where a server listens, as it says on standard error; what it says later fits the pipe."""
    assert server.stderr
    text = ""
    with anyio.fail_after(WAIT_SECONDS):
        while "Serving MCP at " not in text or not text.endswith("\n"):
            text += (await server.stderr.receive()).decode()
    return text.partition("Serving MCP at ")[2].split()[0]
