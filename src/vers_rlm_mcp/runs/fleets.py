"""Opens the backend that the settings choose, with the ledger in front of it."""

from __future__ import annotations

from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vers_rlm_mcp.errors import BackendUnavailable
from vers_rlm_mcp.machines import Fleet, Ledger

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from vers_rlm_mcp.machines import Backend
    from vers_rlm_mcp.machines.bubblewrap import BubblewrapConfig
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
    """Every machine and commit of a backend, machines first, each oldest first."""
    backend, ledger = fleet.backend.name, fleet.ledger
    machines = {record.machine_id: record for record in ledger.machines(backend)}
    commits = {record.id: record for record in ledger.commits(backend)}
    items: list[Item] = []
    for info in await fleet.list():
        record = machines.get(info.id)
        state = "running" if info.running else "stopped"
        state += ", kept" if record and record.kept else ""
        items.append(Item(info.id, state, info.created_at, info.parent, record and record.run))
    for commit in await fleet.commits():
        record = commits.get(commit.id)
        items.append(
            Item(commit.id, "commit", commit.created_at, commit.machine_id, record and record.run)
        )
    return items


def open_backend(settings: Settings) -> Backend:
    """The backend that the settings choose. Raises `BackendUnavailable`."""
    # A backend is imported when it is chosen: what it needs may be missing, or slow to load.
    from vers_rlm_mcp.machines.bubblewrap import BubblewrapBackend  # noqa: PLC0415

    try:
        settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise BackendUnavailable(
            f"The state directory {settings.state_dir} cannot be made: {error.strerror}. "
            "Set VERS_RLM_STATE_DIR to one that you may write to."
        ) from error
    return BubblewrapBackend(settings.state_dir, _bubblewrap(settings))


async def obstacles(settings: Settings) -> Sequence[str]:
    """Why no machine can be made here, each reason with what to do; found out by trying."""
    from vers_rlm_mcp.machines.bubblewrap import probe  # noqa: PLC0415

    findings = await probe(settings.state_dir, _bubblewrap(settings))
    return [f"{finding.name}: {finding.text}" for finding in findings if not finding.ok]


def _bubblewrap(settings: Settings) -> BubblewrapConfig:
    from vers_rlm_mcp.machines.bubblewrap import BubblewrapConfig  # noqa: PLC0415

    return BubblewrapConfig(
        base=settings.base,
        network=settings.network,
        vcpu_count=settings.vcpu_count,
        mem_size_mib=settings.mem_size_mib,
        fs_size_mib=settings.fs_size_mib,
        max_processes=settings.max_processes,
    )
