"""Opens the fleet: the backend that the settings choose, with the ledger in front of it."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from anyio import to_thread

from vers_rlm_mcp.machines import Fleet
from vers_rlm_mcp.store import Ledger

from .backends import choose_backend, open_backend

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from vers_rlm_mcp.settings import Settings

logger = logging.getLogger(__name__)


@asynccontextmanager
async def open_fleet(settings: Settings) -> AsyncGenerator[Fleet]:
    """The machines of one server. At the end those that are not to be kept are deleted.

    Raises:
        BackendUnavailable: No machine can be made here; the message says what to do.
    """
    choice = await to_thread.run_sync(choose_backend, settings)  # it may boot a machine
    async with open_backend(settings) as backend:
        can = backend.capabilities
        logger.info(
            "Machines come from %s, since %s (isolation: %s, fidelity: %s).",
            choice.name,
            choice.reason,
            can.isolation,
            can.fidelity,
        )
        with closing(Ledger(settings.state_dir)) as ledger:
            async with Fleet(backend, ledger, max_machines=settings.max_machines) as fleet:
                yield fleet


@dataclass(frozen=True, slots=True)
class Item:
    """A machine or a commit, with what the ledger knows of it."""

    id: str
    state: str
    """``running``, ``stopped`` or ``commit``; a machine that is to be kept: ``…, kept``."""
    created_at: float
    """Seconds since the epoch."""
    parent: str | None
    """The machine or commit it comes from."""
    run: str | None


async def inventory(fleet: Fleet) -> Sequence[Item]:
    """Every machine and commit but for checkpoints of runs, machines first, each oldest first."""
    backend, ledger = fleet.backend.name, fleet.ledger
    machines = {record.machine_id: record for record in ledger.machines(backend)}
    commits = {record.id: record for record in ledger.commits(backend)}
    items: list[Item] = []
    for info in await fleet.list():
        record = machines.get(info.id)
        state = "running" if info.running else "stopped"
        state += ", kept" if record and record.kept else ""
        items.append(Item(info.id, state, info.created_at, info.parent, record and record.run))
    for commit in await fleet.snapshots():
        record = commits.get(commit.id)
        items.append(
            Item(commit.id, "commit", commit.created_at, commit.machine_id, record and record.run)
        )
    return items
