from __future__ import annotations

from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import anyio
import pytest
from anyio.streams.text import TextReceiveStream
from clients import COMMAND, environment_in
from mcp import StdioServerParameters

from vers_rlm_mcp.server import Application
from vers_rlm_mcp.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from pathlib import Path

    from anyio.abc import Process


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return environment_in(tmp_path)


@pytest.fixture
def stdio(environment: dict[str, str]) -> StdioServerParameters:
    """How to start a stdio server."""
    return StdioServerParameters(command=COMMAND, env=environment)


@pytest.fixture
def application(tmp_path: Path) -> Application:
    """Not open: no machine can be made in it."""
    return Application(Settings.model_validate({"state_dir": tmp_path}), one_client=True)


@dataclass
class HttpServer:
    """A server process, and where it listens."""

    process: Process
    url: str

    @property
    def base(self) -> str:
        return self.url.rpartition("/")[0]


class ServeHttp(Protocol):
    """Starts a server process, and kills it in the end if it has not ended."""

    def __call__(
        self, *flags: str, env: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[HttpServer]: ...


@pytest.fixture
def serve_http_process(environment: dict[str, str]) -> ServeHttp:
    @asynccontextmanager
    async def serve(
        *flags: str, env: Mapping[str, str] | None = None
    ) -> AsyncGenerator[HttpServer]:
        process = await anyio.open_process(
            [COMMAND, "serve", "--port", "0", *flags],
            # Tests that wait for something ask for it all the time.
            env=environment | {"VERS_RLM_MAX_REQUESTS": "10000"} | dict(env or {}),
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

    return serve


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
