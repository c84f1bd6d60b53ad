"""Places to run things in. ``VERS_RLM_TEST_MACHINES=bubblewrap`` or ``=vers`` (the emulator) lets
every test of runs work on such machines, and not only those that are about them."""

from __future__ import annotations

from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING, Any

import pytest
from lab import Lab

import user_data  # noqa: F401  # pyright: ignore[reportUnusedImport]
from assumptions import MACHINES, MARKER, hold_assumptions
from vers_emulator import Options, VersEmulator
from vers_rlm_mcp.machines import Fleet, open_fleet
from vers_rlm_mcp.settings import Settings
from vers_rlm_mcp.store import Ledger
from vers_rlm_mcp.testing import FakeBackend

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator
    from pathlib import Path


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    """Where it does not matter on what: machines that are only directories."""
    async with _opened(MACHINES or "fake", tmp_path) as lab:
        yield lab


@pytest.fixture
async def real(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    """On this host's own machines or, for the second pass of some tests, on the emulator's."""
    machines = getattr(request, "param", MACHINES or "bubblewrap")
    async with _opened(machines, tmp_path) as lab:
        yield lab


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", MARKER)
    config.addinivalue_line("markers", "on_vers_too: runs on bubblewrap and on the Vers emulator")


def pytest_runtest_setup(item: pytest.Item) -> None:
    hold_assumptions(item)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.definition.get_closest_marker("on_vers_too") and MACHINES is None:
        metafunc.parametrize("real", ["bubblewrap", "vers"], indirect=True)


@asynccontextmanager
async def _opened(machines: str, directory: Path) -> AsyncGenerator[Lab]:
    state: dict[str, Any] = {"state_dir": directory / "state", "max_machines": 64}
    if machines == "fake":
        settings = Settings.model_validate(state)
        async with FakeBackend() as backend:
            with closing(Ledger(settings.state_dir)) as ledger:
                async with Fleet(backend, ledger, max_machines=settings.max_machines) as fleet:
                    yield Lab(fleet, settings, directory)
        return
    with pytest.MonkeyPatch.context() as environment:
        async with _service(machines, directory, environment):
            settings = Settings.model_validate({**state, "backend": machines})
            async with open_fleet(settings) as fleet:
                yield Lab(fleet, settings, directory)


@asynccontextmanager
async def _service(
    machines: str, directory: Path, environment: pytest.MonkeyPatch
) -> AsyncGenerator[None]:
    """The service that the machines need, as the environment tells of it."""
    if machines != "vers":
        yield
        return
    async with VersEmulator(directory / "vers", Options(fork_kernels=True)) as emulator:
        for name, value in emulator.facts()["environment"].items():
            environment.setenv(name, value)
        yield
