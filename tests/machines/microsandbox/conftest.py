"""Real micro-VMs, where this computer can boot them; `make test-microvm` makes one that can.

The image, and how large machines are, come from the settings in the environment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from microvm.machines import open_microsandbox
from vers_rlm_mcp.machines.microsandbox import usable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from vers_rlm_mcp.machines import Backend


@pytest.fixture(scope="session")
def open_backend(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Backend]:
    """Opens backends over one state directory; skips where no machine can be booted."""
    directory: Path = tmp_path_factory.mktemp("state")
    found = usable(directory)
    if not found.yes:
        pytest.skip(found.reason)
    return lambda: open_microsandbox(directory)


@pytest.fixture
async def backend(open_backend: Callable[[], Backend]) -> AsyncIterator[Backend]:
    async with open_backend() as opened:
        yield opened
