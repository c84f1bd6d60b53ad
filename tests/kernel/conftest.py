"""Kernels to try, in machines that are only directories. ``VERS_RLM_TEST_MACHINES`` names others:
``bubblewrap``, ``microsandbox``, or ``vers``, which is the emulator.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from repl import FUNCTIONS, Host, Repl, end_kernel

import older_pythons  # noqa: F401  # pyright: ignore[reportUnusedImport]
import user_data  # noqa: F401  # pyright: ignore[reportUnusedImport]
from assumptions import MACHINES, MARKER, hold_assumptions
from microvm.machines import open_microsandbox
from vers_emulator import VersEmulator, config_of
from vers_rlm_mcp.kernel import Kernel
from vers_rlm_mcp.machines import run_command
from vers_rlm_mcp.machines.bubblewrap import BubblewrapBackend
from vers_rlm_mcp.machines.vers import VersBackend
from vers_rlm_mcp.testing import FakeBackend

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from vers_rlm_mcp.machines import Backend, Machine


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", MARKER)


def pytest_runtest_setup(item: pytest.Item) -> None:
    hold_assumptions(item)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def open_vers(directory: Path) -> AsyncGenerator[Backend]:
    async with VersEmulator(directory) as emulator, VersBackend(config_of(emulator)) as backend:
        yield backend


BACKENDS: Mapping[str, Callable[[Path], AbstractAsyncContextManager[Backend]]] = {
    "fake": FakeBackend,
    "bubblewrap": BubblewrapBackend,
    "microsandbox": open_microsandbox,
    "vers": open_vers,
}


@pytest.fixture(scope="module")
async def backend(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Backend]:
    async with BACKENDS[MACHINES or "fake"](tmp_path_factory.mktemp("state")) as backend:
        yield backend


@pytest.fixture(scope="module")
async def lasting(backend: Backend) -> AsyncGenerator[list[Machine]]:
    """A machine for the next test, where it takes long to make one."""
    kept: list[Machine] = []
    yield kept
    for machine in kept:
        await machine.delete()


@pytest.fixture
async def machine(backend: Backend, lasting: list[Machine]) -> AsyncGenerator[Machine]:
    machine = lasting.pop() if lasting else await backend.create()
    yield machine
    if MACHINES == "microsandbox":
        await renew(machine)
        lasting.append(machine)
    else:
        await machine.delete()


async def renew(machine: Machine) -> None:
    """Leave nothing of a test: neither its kernel nor its files."""
    await end_kernel(machine)
    clear = ["find", "/workspace", "-mindepth", "1", "-delete"]
    result = await run_command(machine, clear, timeout=60)
    assert result.status
    assert result.status.ok, result.stderr.text


@pytest.fixture
async def kernel(machine: Machine) -> AsyncGenerator[Kernel]:
    kernel = await Kernel.connect(machine, home_id=machine.id, functions=FUNCTIONS)
    yield kernel
    await kernel.aclose()


@pytest.fixture
def repl(kernel: Kernel) -> Repl:
    return Repl(kernel, Host())
