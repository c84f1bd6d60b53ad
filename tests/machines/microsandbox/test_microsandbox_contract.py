"""The contract of machines, on real micro-VMs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vers_rlm_mcp.testing import CHECKS, Check

if TYPE_CHECKING:
    from collections.abc import Callable

    from vers_rlm_mcp.machines import Backend


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
async def test_microsandbox_keeps_every_promise(
    check: Check, open_backend: Callable[[], Backend]
) -> None:
    async with open_backend() as backend:
        before = await ids(backend)
    await check(open_backend)
    async with open_backend() as backend:
        assert await ids(backend) <= before


async def ids(backend: Backend) -> set[str]:
    return {found.id for found in (*await backend.list(), *await backend.commits())}
