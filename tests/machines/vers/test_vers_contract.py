"""The contract of machines, on Vers through the emulator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

from vers_emulator import config_of
from vers_rlm_mcp.machines.vers import VersBackend
from vers_rlm_mcp.testing import CHECKS, Check

if TYPE_CHECKING:
    from vers_emulator import VersEmulator

pytestmark = pytest.mark.slow

SECONDS = 100
"""More than any check takes, less than pytest's own limit."""


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
async def test_vers_keeps_every_promise(check: Check, emulator: VersEmulator) -> None:
    with anyio.fail_after(SECONDS):
        await check(lambda: VersBackend(config_of(emulator)))
    assert list(emulator.vms) == []
    assert emulator.cloud.commits == {}
