from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

import user_data  # noqa: F401  # pyright: ignore[reportUnusedImport]
from vers_rlm_mcp.machines.bubblewrap import BubblewrapBackend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from vers_rlm_mcp.machines import Machine


def pytest_collection_finish() -> None:
    """Become another user where that is asked for: once all is loaded, as it may be root's."""
    if user := int(os.environ.get("BUBBLEWRAP_TESTS_AS", "0")):
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)


@pytest.fixture(scope="session")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One directory for all tests: what every machine starts from is made there once."""
    return tmp_path_factory.mktemp("state")


@pytest.fixture
async def backend(state: Path) -> AsyncIterator[BubblewrapBackend]:
    async with BubblewrapBackend(state) as opened:
        yield opened


@pytest.fixture
async def machine(backend: BubblewrapBackend) -> AsyncIterator[Machine]:
    made = await backend.create()
    yield made
    await made.delete()
