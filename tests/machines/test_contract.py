"""The contract of `machines/checks`, on every backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

from vers_rlm_mcp.machines import checks
from vers_rlm_mcp.machines.checks import CHECKS, Check
from vers_rlm_mcp.machines.fake import CAPABILITIES as FAKE
from vers_rlm_mcp.machines.fake import FakeBackend

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = 100
"""More than any check takes, less than pytest's own limit."""


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
async def test_the_fake(check: Check, tmp_path: Path) -> None:
    if reason := check.inapplicable(FAKE):
        pytest.skip(reason)
    with anyio.fail_after(SECONDS):
        await check(lambda: FakeBackend(tmp_path))
    assert [*(tmp_path / "machines").iterdir(), *(tmp_path / "commits").iterdir()] == []
    assert [*(tmp_path / "making").iterdir()] == []


def test_every_check_is_collected_and_says_what_it_promises() -> None:
    rooms = (checks.processes, checks.files, checks.lifecycle)
    defined = {value for room in rooms for value in vars(room).values() if isinstance(value, Check)}
    assert defined == set(CHECKS)
    assert all(check.promise.endswith(".") for check in CHECKS)
