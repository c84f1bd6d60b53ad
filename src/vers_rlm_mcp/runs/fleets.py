"""Opens the backend that the settings choose, with the ledger in front of it."""

from __future__ import annotations

from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING

from vers_rlm_mcp.machines import Fleet, Ledger

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from vers_rlm_mcp.machines import Backend
    from vers_rlm_mcp.settings import Settings


@asynccontextmanager
async def open_fleet(settings: Settings) -> AsyncGenerator[Fleet]:
    """The machines of one server. At the end those that are not to be kept are deleted.

    Raises:
        BackendUnavailable: No machine can be made here; the message says what to do.
    """
    async with open_backend(settings) as backend:
        with closing(Ledger(settings.state_dir)) as ledger:
            async with Fleet(backend, ledger, max_machines=settings.max_machines) as fleet:
                yield fleet


def open_backend(settings: Settings) -> Backend:
    """The backend that the settings choose."""
    # A backend is imported when it is chosen: what it needs may be missing, or slow to load.
    from vers_rlm_mcp.machines.bubblewrap import (  # noqa: PLC0415
        BubblewrapBackend,
        BubblewrapConfig,
    )

    config = BubblewrapConfig(
        base=settings.base,
        network=settings.network,
        vcpu_count=settings.vcpu_count,
        mem_size_mib=settings.mem_size_mib,
        fs_size_mib=settings.fs_size_mib,
        max_processes=settings.max_processes,
    )
    return BubblewrapBackend(settings.state_dir, config)
