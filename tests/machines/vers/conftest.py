from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vers_emulator import VersEmulator, config_of
from vers_rlm_mcp.machines.vers import VersBackend

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from vers_rlm_mcp.machines import Machine


@pytest.fixture(scope="module")
async def emulator(state: Path) -> AsyncGenerator[VersEmulator]:
    """One service for the tests of a module; each clears the faults that it sets."""
    async with VersEmulator(state) as running:
        yield running


@pytest.fixture
async def backend(emulator: VersEmulator) -> AsyncGenerator[VersBackend]:
    async with VersBackend(config_of(emulator)) as opened:
        yield opened


@pytest.fixture
async def machine(backend: VersBackend) -> AsyncGenerator[Machine]:
    made = await backend.create()
    yield made
    await made.delete()
