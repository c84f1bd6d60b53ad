from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from repl import Host, Repl

from vers_rlm_mcp.kernel import Kernel
from vers_rlm_mcp.machines.fake import FakeBackend, FakeMachine

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncGenerator[FakeBackend]:
    async with FakeBackend(tmp_path) as backend:
        yield backend


@pytest.fixture
async def machine(backend: FakeBackend) -> AsyncGenerator[FakeMachine]:
    machine = await backend.create()
    yield machine
    await machine.delete()


@pytest.fixture
async def kernel(machine: FakeMachine) -> AsyncGenerator[Kernel]:
    kernel = await Kernel.connect(machine, home_id=machine.id)
    yield kernel
    await kernel.aclose()


@pytest.fixture
def repl(kernel: Kernel) -> Repl:
    return Repl(kernel, Host())
