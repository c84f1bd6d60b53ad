from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Protocol

import pytest
from clients import COMMAND, environment_in, serve_http_in
from mcp import StdioServerParameters

from vers_rlm_mcp.server import Application
from vers_rlm_mcp.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from clients import HttpServer


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


class ServeHttp(Protocol):
    """Starts a server process, and kills it in the end if it has not ended."""

    def __call__(
        self, *flags: str, env: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[HttpServer]: ...


@pytest.fixture
def serve_http_process(environment: dict[str, str]) -> ServeHttp:
    return partial(serve_http_in, environment)
