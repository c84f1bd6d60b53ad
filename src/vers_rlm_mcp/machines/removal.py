"""Deletes the machines of ledger records that `Fleet` chose, also those without a recorded id."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import TYPE_CHECKING, Final

import anyio

from vers_rlm_mcp.errors import BackendUnavailable

from .base import INTENT

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from vers_rlm_mcp.store import Ledger, MachineRecord

    from .base import Backend, MachineInfo

DELETES_AT_ONCE: Final = 8
"""Enough that remote waits overlap, few enough for a service's rate limit."""

SETTLE_SECONDS: Final = 600.0
"""How long a machine may take to appear after its request failed. Remote boots take seconds."""


class Removal:
    """Deletes the machines of records, and collects what was deleted and what went wrong."""

    def __init__(self, backend: Backend, ledger: Ledger) -> None:
        self.deleted: list[str] = []
        self.warnings: list[str] = []
        """A sentence on each machine that could not be deleted."""
        self._backend = backend
        self._ledger = ledger
        self._limiter = anyio.CapacityLimiter(DELETES_AT_ONCE)

    async def run(self, records: Sequence[MachineRecord]) -> None:
        """Delete the machines, several at a time. An error on one does not stop the others."""
        if any(record.machine_id is None for record in records):
            records = await self._adopt(records)
        async with anyio.create_task_group() as tasks:
            for record in records:
                tasks.start_soon(self._remove, record)

    async def _adopt(self, records: Sequence[MachineRecord]) -> Sequence[MachineRecord]:
        """Bind records without a machine to the machines that bear their intents as a label."""
        intents = {record.intent for record in records if record.machine_id is None}
        try:
            for intent, ids in _by_intent(await self._backend.list()).items():
                if intent in intents:
                    await self._bind(intent, ids)
            for intent in intents:
                await self._adopt_unlabelled(intent)
        except Exception as error:  # noqa: BLE001 - the machines whose ids are known must still go
            self.warnings.append(f"Machines whose making failed cannot be looked for: {error}")
        bound = [record for record in records if record.machine_id is not None]
        return [
            *bound,
            *(record for intent in intents for record in self._ledger.machines_of_intent(intent)),
        ]

    async def _bind(self, intent: str, machine_ids: Sequence[str]) -> None:
        """Bind machines to their record, or delete them at once if that cannot be recorded."""
        try:
            self._ledger.bind(intent, machine_ids)
        except BackendUnavailable:  # The disk is full, perhaps of them.
            for machine_id in machine_ids:
                await self._backend.delete(machine_id)
            raise

    async def _adopt_unlabelled(self, intent: str) -> None:
        """Bind copies that a killed server never labelled, if they are certainly its own."""
        records = self._ledger.machines_of_intent(intent)
        parent = records[0].parent
        missing = [record for record in records if record.machine_id is None]
        if parent is None or not missing or self._is_being_copied(parent):
            return
        name = self._backend.name
        found = [
            machine_id
            for machine_id in await self._backend.unlabelled(parent, records[0].asked_at)
            if not self._ledger.machines(name, machine_id)
        ]
        if self._is_private(parent) and len(found) <= len(missing):
            bound = [record.machine_id for record in records if record.machine_id is not None]
            self._ledger.bind(intent, [*bound, *found])
        elif found:
            self.warnings.append(
                f"A server that was killed may have made {', '.join(found)} from {parent}, without "
                "a label to tell; so may somebody else. Delete those that are not needed."
            )

    def _is_private(self, parent: str) -> bool:
        """Whether only a run is likely to copy this: its own machine, not kept, or its commit."""
        machines = self._ledger.machines(self._backend.name, parent)
        commits = [c for c in self._ledger.commits(self._backend.name) if c.id == parent]
        return any(not machine.kept for machine in machines) or any(
            commit.run is not None for commit in commits
        )

    def _is_being_copied(self, parent: str) -> bool:
        """Whether a live server may have copies of this that are not labelled yet."""
        return any(
            record.parent == parent
            and record.machine_id is None
            and self._ledger.is_alive(record.owner)
            for record in self._ledger.live(self._backend.name)
        )

    async def _remove(self, record: MachineRecord) -> None:
        if record.machine_id is None:
            if time.time() - record.asked_at > SETTLE_SECONDS:
                self._ledger.close_record(record)
            return
        try:
            async with self._limiter:
                await self._backend.delete(record.machine_id)
            self._ledger.close_record(record)
            self.deleted.append(record.machine_id)
        except Exception as error:  # noqa: BLE001 - trouble with one must not save the others
            self.warnings.append(f"Machine {record.machine_id} could not be deleted: {error}")


def _by_intent(infos: Iterable[MachineInfo]) -> Mapping[str, Sequence[str]]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for info in infos:
        if INTENT in info.labels:
            found[info.labels[INTENT]].append(info.id)
    return found
