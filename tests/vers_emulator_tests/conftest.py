from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

import httpx2
import pytest
from raw import SECONDS, RawVers

from vers_emulator import Options, VersEmulator

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path


class Open(Protocol):
    def __call__(
        self, options: Options | None = None, *, seed: int = 0
    ) -> AbstractAsyncContextManager[RawVers]: ...


@pytest.fixture(scope="session")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One directory for all tests: what every machine starts from is made there once."""
    return tmp_path_factory.mktemp("vers")


@pytest.fixture(scope="session")
def open_vers(state: Path) -> Open:
    """Starts an emulator with options of the test's own, and a client for it."""

    @asynccontextmanager
    async def opened(options: Options | None = None, *, seed: int = 0) -> AsyncGenerator[RawVers]:
        async with VersEmulator(state, options, seed=seed) as emulator:
            headers = {"Authorization": f"Bearer {emulator.api_key}"}
            async with httpx2.AsyncClient(
                base_url=emulator.base_url, headers=headers, timeout=SECONDS
            ) as http:
                yield RawVers(emulator, http)

    return opened


@pytest.fixture(scope="module")
async def vers(open_vers: Open) -> AsyncIterator[RawVers]:
    """One emulator for the tests of a module, each with machines of its own."""
    async with open_vers() as opened:
        yield opened


@pytest.fixture
async def vm(vers: RawVers) -> str:
    return await vers.create()
