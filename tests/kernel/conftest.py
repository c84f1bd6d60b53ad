"""Kernels to try. ``VERS_RLM_TEST_MACHINES=microsandbox`` puts them into micro-VMs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from repl import Host, Repl

from microvm.machines import open_microsandbox
from vers_rlm_mcp.kernel import Kernel
from vers_rlm_mcp.machines.fake import FakeBackend

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from vers_rlm_mcp.machines import Backend, Machine

MACHINES = os.environ.get("VERS_RLM_TEST_MACHINES")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncGenerator[Backend]:
    opened = open_microsandbox(tmp_path) if MACHINES == "microsandbox" else FakeBackend(tmp_path)
    async with opened as backend:
        yield backend


@pytest.fixture
async def machine(backend: Backend) -> AsyncGenerator[Machine]:
    machine = await backend.create()
    yield machine
    await machine.delete()


@pytest.fixture
async def kernel(machine: Machine) -> AsyncGenerator[Kernel]:
    kernel = await Kernel.connect(machine, home_id=machine.id)
    yield kernel
    await kernel.aclose()


@pytest.fixture
def repl(kernel: Kernel) -> Repl:
    return Repl(kernel, Host())
