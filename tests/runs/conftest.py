from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from lab import Lab

from vers_rlm_mcp import runs
from vers_rlm_mcp.machines import Fleet, Ledger
from vers_rlm_mcp.machines.fake import FakeBackend
from vers_rlm_mcp.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    """On machines that are only directories; they are gone afterwards."""
    settings = Settings.model_validate({"state_dir": tmp_path / "state", "max_machines": 64})
    async with FakeBackend() as backend:
        with closing(Ledger(settings.state_dir)) as ledger:
            async with Fleet(backend, ledger, max_machines=settings.max_machines) as fleet:
                yield Lab(fleet, settings, tmp_path)


@pytest.fixture
async def real(tmp_path: Path) -> AsyncIterator[Lab]:
    """On this host's own machines."""
    settings = Settings.model_validate({"state_dir": tmp_path / "state"})
    async with runs.open_fleet(settings) as fleet:
        yield Lab(fleet, settings, tmp_path)
