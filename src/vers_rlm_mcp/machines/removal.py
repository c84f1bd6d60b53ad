"""Deletes the machines of ledger records that `Fleet` chose, also those without a recorded id.

A machine whose id is recorded is ours. One that only bears an intent as a label is deleted if it
proves that it is: it bears the intent's secret, too, was made after the intent was recorded, and
there are no more of its kind than were asked for. Others may be anyone's, and the user is told.
"""

from __future__ import annotations

import hmac
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Final

import anyio

from vers_rlm_mcp.errors import BackendUnavailable
from vers_rlm_mcp.store import in_thread

from .base import CLOCK_SECONDS, INTENT, SECRET

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

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
        self.strays: list[str] = []
        """The machines found that bear an intent as a label and are in no record."""
        self._backend = backend
        self._ledger = ledger
        self._limiter = anyio.CapacityLimiter(DELETES_AT_ONCE)

    async def run(self, records: Sequence[MachineRecord]) -> None:
        """Delete the machines, several at a time. An error on one does not stop the others."""
        await self._remove_all(record for record in records if record.machine_id is not None)
        intents = {record.intent for record in records if record.machine_id is None}
        if intents:
            await self._look_for(intents, only_these=True)

    async def sweep(self, records: Sequence[MachineRecord]) -> None:
        """Do the same, and then look for machines of any intent whose ids were never recorded."""
        await self._remove_all(record for record in records if record.machine_id is not None)
        await self._look_for({record.intent for record in records if record.machine_id is None})

    async def _look_for(self, intents: Collection[str], *, only_these: bool = False) -> None:
        """Bind machines to records that have none, and delete them."""
        adopted: set[str] = set()
        try:
            labelled = _by_intent(await self._backend.list())
            for intent, infos in labelled.items():
                self.strays += await in_thread(find_strays, infos, self._ledger)
                if intent in intents or not (
                    only_these or await in_thread(self._is_being_made, intent)
                ):
                    adopted |= await self._adopt(intent, infos)
            for intent in intents:
                await self._adopt_unlabelled(intent)
        except Exception as error:  # noqa: BLE001 - trouble with the list must not stop the server
            self.warnings.append(f"Machines whose making failed cannot be looked for: {error}")
        for intent in adopted.union(intents):
            records = await in_thread(self._ledger.machines_of_intent, intent)
            await self._remove_all(record for record in records if record.deleted_at is None)

    async def _remove_all(self, records: Iterable[MachineRecord]) -> None:
        async with anyio.create_task_group() as tasks:
            for record in records:
                tasks.start_soon(self._remove, record)

    async def _adopt(self, intent: str, infos: Sequence[MachineInfo]) -> set[str]:
        """Bind machines that bear an intent and prove it. Returns the intent if there are any."""
        records = await in_thread(self._ledger.machines_of_intent, intent)
        missing = [record for record in records if record.machine_id is None]
        unknown = await in_thread(self._unknown, [info.id for info in infos])
        new = [info for info in infos if info.id in unknown]
        if not records or not new:
            return set()
        proven = [info for info in new if is_proven(info, records[0])]
        if len(proven) > len(missing):
            proven = []
        if proven:
            await self._bind(intent, [info.id for info in proven])
        if doubtful := [info.id for info in new if info not in proven]:
            self.warnings.append(
                f"{', '.join(doubtful)} may have been made for this server, which cannot be "
                "proven: an older version or somebody else may have labelled it. Delete it if it "
                "is not needed: `vers-rlm-mcp machines delete ID`."
            )
        return {intent} if proven else set()

    def _is_being_made(self, intent: str) -> bool:
        """Whether a live server may be about to record the id of a machine."""
        return any(
            record.machine_id is record.abandoned_at is record.deleted_at is None
            and self._ledger.is_alive(record.owner)
            for record in self._ledger.machines_of_intent(intent)
        )

    async def _bind(self, intent: str, machine_ids: Sequence[str]) -> None:
        """Bind machines to their record, or delete them at once if that cannot be recorded."""
        try:
            await in_thread(self._ledger.adopt, intent, machine_ids)
        except BackendUnavailable:  # The disk is full, perhaps of them.
            for machine_id in machine_ids:
                await self._backend.delete(machine_id)
            raise

    async def _adopt_unlabelled(self, intent: str) -> None:
        """Bind copies that a killed server never labelled, if they are certainly its own."""
        records = await in_thread(self._ledger.machines_of_intent, intent)
        parent = records[0].parent
        missing = [record for record in records if record.machine_id is None]
        if parent is None or not missing or await in_thread(self._is_being_copied, parent):
            return
        unlabelled = await self._backend.unlabelled(parent, records[0].asked_at)
        found = await in_thread(self._unknown, unlabelled)
        if await in_thread(self._is_private, parent) and len(found) <= len(missing):
            await in_thread(self._ledger.adopt, intent, found)
        elif found:
            self.warnings.append(
                f"A server that was killed may have made {', '.join(found)} from {parent}, without "
                "a label to tell; so may somebody else. Delete those that are not needed."
            )

    def _unknown(self, machine_ids: Sequence[str]) -> Sequence[str]:
        """Those of the machines that are in no record."""
        name = self._backend.name
        return [id_ for id_ in machine_ids if not self._ledger.machines(name, id_)]

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
                await in_thread(self._ledger.close_record, record)
            return
        try:
            async with self._limiter:
                await self._backend.delete(record.machine_id)
            await in_thread(self._ledger.close_record, record)
            self.deleted.append(record.machine_id)
        except Exception as error:  # noqa: BLE001 - trouble with one must not save the others
            self.warnings.append(f"Machine {record.machine_id} could not be deleted: {error}")


def find_strays(infos: Iterable[MachineInfo], ledger: Ledger) -> list[str]:
    """The machines that bear an intent as a label and are in no record. May wait for the ledger."""
    return [info.id for info in infos if is_stray(info, ledger)]


def is_stray(info: MachineInfo, ledger: Ledger) -> bool:
    """Whether a machine bears an intent as a label and is in no record all the same."""
    intent = info.labels.get(INTENT)
    return intent is not None and not (
        ledger.machines(info.backend, info.id) or ledger.machines_of_intent(intent)
    )


def _by_intent(infos: Iterable[MachineInfo]) -> Mapping[str, Sequence[MachineInfo]]:
    found: defaultdict[str, list[MachineInfo]] = defaultdict(list)
    for info in infos:
        if INTENT in info.labels:
            found[info.labels[INTENT]].append(info)
    return found


def is_proven(info: MachineInfo, record: MachineRecord) -> bool:
    """Whether a machine that bears a record's intent was made for it."""
    secret = info.labels.get(SECRET, "").encode(errors="replace")
    return (
        record.secret is not None
        and hmac.compare_digest(secret, record.secret.encode())
        and info.created_at >= record.asked_at - CLOCK_SECONDS
    )
