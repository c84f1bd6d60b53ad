from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from trees import grow

from vers_emulator import VersEmulator
from vers_rlm_mcp.machines import choose_backend
from vers_rlm_mcp.machines.bubblewrap import BubblewrapBackend
from vers_rlm_mcp.settings import Settings
from vers_rlm_mcp.testing import FakeBackend

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator
    from pathlib import Path

    from vers_rlm_mcp.machines import Backend, Machine


@pytest.fixture(scope="module", params=["fake", "bubblewrap", "vers"])
async def everywhere(request: pytest.FixtureRequest, state: Path) -> AsyncIterator[Backend]:
    """Each backend in turn, for what must be alike on all."""
    async with _opened(request.param, state) as backend:
        yield backend


@asynccontextmanager
async def _opened(name: str, state: Path) -> AsyncGenerator[Backend]:
    if name == "fake":
        async with FakeBackend() as fake:
            yield fake
    elif name == "bubblewrap":
        async with BubblewrapBackend(state) as bubblewrap:
            yield bubblewrap
    else:
        with pytest.MonkeyPatch.context() as environment:
            async with VersEmulator(state) as emulator:
                for variable, value in emulator.facts()["environment"].items():
                    environment.setenv(variable, value)
                settings = Settings.model_validate({"backend": name, "state_dir": state})
                async with choose_backend(settings).factory.open(settings) as vers:
                    yield vers


@pytest.fixture
async def twins(everywhere: Backend) -> AsyncIterator[tuple[Machine, Machine]]:
    """A machine with a tree in `/workspace/tree`, and a copy of it."""
    machine = await everywhere.create()
    await grow(machine, seed=1, count=60)
    (copy,) = await machine.branch()
    yield machine, copy
    await copy.delete()
    await machine.delete()


@pytest.fixture
async def pair(backend: BubblewrapBackend) -> AsyncIterator[tuple[Machine, Machine]]:
    """A machine and a copy of it, where it does not matter on what."""
    machine = await backend.create()
    (copy,) = await machine.branch()
    yield machine, copy
    await copy.delete()
    await machine.delete()
