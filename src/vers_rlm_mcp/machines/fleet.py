"""The fleet: makes every machine, records it in the ledger first, and sees that it is deleted."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import anyio

from vers_rlm_mcp.errors import (
    NAMED_HANDLES,
    BackendUnavailable,
    MachineError,
    UnknownHandle,
    unknown_handle,
)
from vers_rlm_mcp.store import CommitRecord, in_thread, in_thread_anyway

from .base import CLOCK_SECONDS, INTENT, SECRET
from .removal import SETTLE_SECONDS, Removal, find_strays

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from vers_rlm_mcp.store import CommitIntent, Ledger, MachineRecord

    from .base import Backend, Commit, Machine, MachineInfo, MachineSpec

logger = logging.getLogger(__name__)

REMOVE_SECONDS: Final = 15.0
"""How long deleting may delay a cancelled call or the end of the server. Local machines take
milliseconds each, remote ones have taken up to 7 s. A sweep deletes the rest."""

SWEEP_SECONDS: Final = 300.0
"""How long a sweep may take that no call waits for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A machine or a commit, with what the ledger knows of it."""

    id: str
    state: str
    """``running``, ``stopped`` or ``commit``; followed by ``, kept`` if a machine is kept, or by
    ``, not in the ledger`` if it is stray."""
    created_at: float
    """Seconds since the epoch."""
    parent: str | None
    """The machine or commit that it was made from."""
    run: str | None
    is_stray: bool = False
    """Whether a machine bears a label of ours and is in no record: see `Fleet.strays`."""


class Fleet:
    """Makes machines, each recorded in the ledger before it exists, and deletes them.

    The caller closes the handles that are returned. The fleet closes neither backend nor ledger.

    Args:
        backend: Where machines come from.
        ledger: Where they are recorded.
        max_machines: How many this server may have alive at once, for each principal.
        principal: The client on whose behalf to act. It sees and uses only what was made for it,
            and no answer or error reveals that there is anything else. None stands for the
            server's operator, who sees everything.
    """

    def __init__(
        self, backend: Backend, ledger: Ledger, *, max_machines: int, principal: str | None = None
    ) -> None:
        self.backend = backend
        self.ledger = ledger
        self.principal = principal
        self.kernels_in_use: set[str] = set()
        """Machines whose kernels run a cell or belong to a run. Another host would take them over.

        Shared, like the next one, by every fleet that `seen_by` returns.
        """
        self._max_machines = max_machines
        self._told: set[str] = set()
        """The strays of which the user was told."""
        self._overdue: set[int] = set()
        """The records whose machines were to be deleted. A sweep deletes those that still live."""

    def seen_by(self, principal: str) -> Fleet:
        """The fleet as a client of the server may see and use it."""
        fleet = copy(self)
        fleet.principal = principal
        return fleet

    async def create(
        self, spec: MachineSpec | None = None, *, run: str | None = None, keep: bool = False
    ) -> Machine:
        """Make a fresh machine.

        Args:
            spec: The size of the machine.
            run: The run that it is made for. It is deleted with the run, unless it is kept.
            keep: Let the machine outlive its run and this server.

        Raises:
            MachineError: The limit is reached (the message names machines to delete), or the
                backend could not make one.
        """

        async def make(labels: Mapping[str, str]) -> Sequence[Machine]:
            return [await self.backend.create(spec, labels=labels)]

        (machine,) = await self._make(make, run=run, keep=keep)
        return machine

    async def restore(
        self,
        commit_id: str,
        spec: MachineSpec | None = None,
        *,
        run: str | None = None,
        keep: bool = False,
    ) -> Machine:
        """Make a machine from a commit; otherwise like `create`. Raises `UnknownHandle` too."""

        async def make(labels: Mapping[str, str]) -> Sequence[Machine]:
            return [await self.backend.restore(commit_id, spec, labels=labels)]

        if self.principal is None or commit_id in await self._own_commits():
            try:
                (machine,) = await self._make(make, parent=commit_id, run=run, keep=keep)
                return machine
            except UnknownHandle:
                if self.principal is None:
                    raise
        raise unknown_handle("commit", commit_id, [commit.id for commit in await self.commits()])

    async def branch(
        self, machine: Machine, count: int = 1, *, run: str | None = None, keep: bool = False
    ) -> Sequence[Machine]:
        """Make `count` copies of a machine, all from one instant; otherwise like `create`."""

        async def make(labels: Mapping[str, str]) -> Sequence[Machine]:
            return await machine.branch(count, labels=labels)

        return await self._make(make, count=count, parent=machine.id, run=run, keep=keep)

    async def snapshot(
        self, machine: Machine, *, run: str | None = None, step: int | None = None
    ) -> Commit:
        """Commit a machine, and record the run and step that the commit belongs to.

        If this server is killed before the commit is recorded, a later sweep deletes it: its id
        was never returned.
        """
        intent = await in_thread(self.ledger.ask_commit, self.backend.name)
        commit = await machine.snapshot(intent=intent)
        record = CommitRecord(
            backend=self.backend.name,
            id=commit.id,
            machine_id=commit.machine_id,
            run=run,
            step=step,
            created_at=commit.created_at,
            principal=self.principal,
        )
        await in_thread_anyway(self.ledger.record_commit, record, commit.intent)
        return commit

    async def attach(self, machine_id: str) -> Machine:
        """A handle on a visible machine, whichever server made it. Raises `UnknownHandle`."""
        if self.principal is None or await self._is_recorded(machine_id):
            try:
                return await self.backend.attach(machine_id)
            except UnknownHandle:
                if self.principal is None:
                    raise  # it names every machine, and the operator may see every machine
        raise unknown_handle("machine", machine_id, [info.id for info in await self.list()])

    async def list(self) -> Sequence[MachineInfo]:
        """Every visible machine of the backend, whichever server made it, oldest first."""
        machines = await self.backend.list()
        if self.principal is None:
            return machines
        own = {record.machine_id for record in await self._live()}
        return [info for info in machines if info.id in own]

    async def commits(self) -> Sequence[Commit]:
        """Every visible commit of the backend, oldest first."""
        commits = await self.backend.commits()
        if self.principal is None:
            return commits
        own = await self._own_commits()
        return [commit for commit in commits if commit.id in own]

    async def snapshots(self) -> Sequence[Commit]:
        """Every visible commit that is no checkpoint of a run, oldest first."""
        checkpoints = {record.id for record in await self.checkpoints()}
        return [commit for commit in await self.commits() if commit.id not in checkpoints]

    async def checkpoints(self) -> Sequence[CommitRecord]:
        """The visible commits that runs made at their steps, oldest first."""
        records = await in_thread(self.ledger.checkpoints, self.backend.name)
        return [record for record in records if self.principal in (None, record.principal)]

    async def inventory(self) -> Sequence[Item]:
        """Every visible machine, then every visible commit but checkpoints, each oldest first."""
        name = self.backend.name
        recorded = await in_thread(self.ledger.machines, name)
        machines = {record.machine_id: record for record in recorded}
        commits = {record.id: record for record in await in_thread(self.ledger.commits, name)}
        items: list[Item] = []
        infos = await self.list()
        strays = await in_thread(find_strays, infos, self.ledger)
        for info in infos:
            record = machines.get(info.id)
            stray = info.id in strays
            state = "running" if info.running else "stopped"
            if record and record.kept:
                state += ", kept"
            elif stray:
                state += ", not in the ledger"
            items.append(
                Item(
                    id=info.id,
                    state=state,
                    created_at=info.created_at,
                    parent=info.parent,
                    run=record and record.run,
                    is_stray=stray,
                )
            )
        for commit in await self.snapshots():
            record = commits.get(commit.id)
            items.append(
                Item(
                    id=commit.id,
                    state="commit",
                    created_at=commit.created_at,
                    parent=commit.machine_id,
                    run=record and record.run,
                )
            )
        return items

    async def keep(self, machine_id: str) -> None:
        """Let a machine outlive its run and this server. Raises `UnknownHandle`."""
        await self._require_known(machine_id)
        await in_thread(self.ledger.keep, self.backend.name, machine_id)

    async def delete(self, machine_id: str) -> None:
        """Delete a machine. Deleting it again is no error. Raises `UnknownHandle`."""
        await self._require_known(machine_id)
        try:
            await self.backend.delete(machine_id)
        except BaseException:
            with suppress(BackendUnavailable):
                # Sweeps go on trying.
                await in_thread_anyway(self.ledger.condemn, self.backend.name, machine_id)
            raise
        await in_thread_anyway(self.ledger.mark_deleted, self.backend.name, machine_id)

    async def delete_commit(self, commit_id: str) -> None:
        """Delete a commit. Machines made from it live on. Deleting it again is no error."""
        if self.principal is not None and commit_id not in await self._own_commits():
            return
        await self.backend.delete_commit(commit_id)
        await in_thread_anyway(self.ledger.mark_commit_deleted, self.backend.name, commit_id)

    async def release_run(self, run: str) -> Sequence[str]:
        """Delete the machines of a run that are not kept, even when cancelled.

        Returns:
            A sentence on each machine that could not be deleted. A later sweep tries again.
        """
        with anyio.CancelScope(shield=True):
            recorded = await self._own()
            own = [record for record in recorded if record.run == run and not _is_kept(record)]
            return (await self._remove(own)).warnings
        raise AssertionError("a shielded scope was left early")

    async def strays(self) -> Sequence[str]:
        """The machines that bear a label of ours and are in no record of the ledger.

        Another computer made them, or a server whose ledger was lost. They are never deleted
        unasked.
        """
        return await in_thread(find_strays, await self.list(), self.ledger)

    async def sweep(self, *, patient: bool = False) -> Sequence[str]:
        """Delete what dead servers left behind, and what this one could not delete before.

        Kept machines stay. An error on one machine is logged and does not stop the others, and so
        are machines that bear a label of ours and cannot be proven to be ours.

        Args:
            patient: Whether it may take minutes, as nothing waits for it. Else, a later sweep
                deletes what takes long.

        Returns:
            What was deleted: the ids of machines and commits, and what no machine starts from.
        """
        live = await in_thread(self.ledger.live, self.backend.name)
        self._overdue.intersection_update(record.number for record in live)
        left_over = await in_thread(lambda: [each for each in live if self._is_left_over(each)])
        removal = Removal(self.backend, self.ledger)
        seconds = SWEEP_SECONDS if patient else REMOVE_SECONDS
        with anyio.move_on_after(seconds) as scope:
            await removal.sweep(left_over)
        _note_time(removal, scope, seconds)
        if new := [stray for stray in removal.strays if stray not in self._told]:
            self._told.update(new)
            logger.warning("%s", describe_strays(new))
        for warning in removal.warnings:
            logger.warning("%s", warning)
        return [*removal.deleted, *await self._sweep_commits(), *await self._sweep_backend()]

    async def aclose(self) -> None:
        """Delete the machines that this server made and that are not kept."""
        with anyio.CancelScope(shield=True):
            own = [record for record in await self._own() if not _is_kept(record)]
            for warning in (await self._remove(own)).warnings:
                logger.warning("%s", warning)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _make(
        self,
        make: Callable[[Mapping[str, str]], Awaitable[Sequence[Machine]]],
        *,
        count: int = 1,
        parent: str | None = None,
        run: str | None,
        keep: bool,
    ) -> Sequence[Machine]:
        """Record the intent, make the machines, and record their ids.

        After an error or a cancellation, even one that comes when the backend is nearly done,
        machines that bear the intent are looked for and deleted.
        """
        intent = await in_thread(
            self.ledger.ask,
            self.backend.name,
            count=count,
            limit=self._max_machines,
            run=run,
            parent=parent,
            keep=keep,
            principal=self.principal,
        )
        if intent is None:
            raise await self._limit_reached(count)
        try:
            machines = await make(await self._labels(intent, run))
            await self._refuse_known(machines)
            await in_thread(self.ledger.bind, intent, [machine.id for machine in machines])
        except BaseException:
            with suppress(BackendUnavailable):  # The disk is full: they go when this server ends.
                await in_thread_anyway(self.ledger.abandon, intent)
            records = await in_thread_anyway(self.ledger.machines_of_intent, intent)
            await self._remove(records)
            raise
        return machines

    async def _labels(self, intent: str, run: str | None) -> Mapping[str, str]:
        """A machine's labels. The last two are for people who read a service's own lists."""
        (record, *_) = await in_thread(self.ledger.machines_of_intent, intent)
        labels = {INTENT: intent, SECRET: record.secret or "", "server": self.ledger.owner}
        return labels if run is None else {**labels, "run": run}

    async def _refuse_known(self, machines: Sequence[Machine]) -> None:
        """Raise `MachineError` unless these are new machines, and each another."""
        ids = [machine.id for machine in machines]
        name = self.backend.name
        known = [
            id_
            for id_ in ids
            if ids.count(id_) > 1 or await in_thread(self.ledger.machines, name, id_)
        ]
        if not known:
            return
        for machine in machines:
            await machine.aclose()
        raise MachineError(
            f"{name} answered with machine {known[0]} as a new one, which it is not; "
            "it was left as it is. Try again later."
        )

    async def _limit_reached(self, count: int) -> MachineError:
        alive = [record.machine_id for record in await self._own() if record.machine_id]
        named = ", ".join(alive[:NAMED_HANDLES]) or "none can be deleted yet"
        return MachineError(
            f"{count} more would be too many machines: this server may have {self._max_machines} "
            f"at once (VERS_RLM_MAX_MACHINES). Delete what is not needed; oldest first: {named}."
        )

    async def _require_known(self, machine_id: str) -> None:
        if not await self._is_recorded(machine_id):
            known = [info.id for info in await self.list()]
            if machine_id not in known:
                raise unknown_handle("machine", machine_id, known)

    async def _is_recorded(self, machine_id: str) -> bool:
        """Whether a machine was made through this ledger, for this fleet's principal."""
        records = await in_thread(self.ledger.machines, self.backend.name, machine_id)
        return any(self.principal in (None, record.principal) for record in records)

    def _is_left_over(self, record: MachineRecord) -> bool:
        if record.abandoned_at is not None:
            return True
        if _is_kept(record):
            return False
        return record.number in self._overdue or not self.ledger.is_alive(record.owner)

    async def _live(self) -> Sequence[MachineRecord]:
        """The visible machines of all servers."""
        live = await in_thread(self.ledger.live, self.backend.name)
        return [record for record in live if self.principal in (None, record.principal)]

    async def _own(self) -> Sequence[MachineRecord]:
        """The visible machines of this server."""
        return [record for record in await self._live() if record.owner == self.ledger.owner]

    async def _own_commits(self) -> set[str]:
        commits = await in_thread(self.ledger.commits, self.backend.name)
        return {commit.id for commit in commits if commit.principal == self.principal}

    async def _sweep_commits(self) -> Sequence[str]:
        """Delete commits whose servers were killed before they could record them."""
        asked = await in_thread(self._commits_of_dead)
        if not asked:
            return ()
        deleted: list[str] = []
        try:
            commits = await self.backend.commits()
            for intent in list(asked):
                found = [commit for commit in commits if commit.intent == intent]
                began_at = asked[intent].asked_at - CLOCK_SECONDS
                if len(found) == 1 and found[0].created_at >= began_at:
                    await self.backend.delete_commit(found[0].id)
                    await in_thread(self.ledger.close_intent, asked.pop(intent))
                    deleted.append(found[0].id)
                elif found:
                    logger.warning(
                        "Commit %s may have been made for this server, which cannot be proven. "
                        "Delete it if it is not needed: `vers-rlm-mcp machines delete ID`.",
                        ", ".join(commit.id for commit in found),
                    )
        except MachineError as error:
            logger.warning("Commits of servers that were killed cannot be deleted yet: %s", error)
        for late in asked.values():
            if time.time() - late.asked_at > SETTLE_SECONDS:
                await in_thread(self.ledger.close_intent, late)
        return deleted

    def _commits_of_dead(self) -> dict[str, CommitIntent]:
        """The commits, by intent, that dead servers asked for and did not record."""
        name = self.backend.name
        owners = {commit.owner for commit in self.ledger.commit_intents(name)}
        dead = {owner for owner in owners if not self.ledger.is_alive(owner)}
        # Read again: a server may have recorded its last commit and then ended.
        intents = self.ledger.commit_intents(name)
        return {commit.intent: commit for commit in intents if commit.owner in dead}

    async def _sweep_backend(self) -> Sequence[str]:
        try:
            return await self.backend.sweep()
        except MachineError as error:
            logger.warning("%s", error)
            return ()

    async def _remove(self, records: Sequence[MachineRecord]) -> Removal:
        """Delete the machines of these records, several at a time, even when cancelled."""
        self._overdue.update(record.number for record in records)
        removal = Removal(self.backend, self.ledger)
        with anyio.move_on_after(REMOVE_SECONDS, shield=True) as scope:
            await removal.run(records)
        _note_time(removal, scope, REMOVE_SECONDS)
        return removal


def describe_strays(ids: Sequence[str]) -> str:
    """A sentence for the user on machines that `Fleet.strays` found."""
    return (
        f"Not in the ledger, but with a label of vers-rlm-mcp: {', '.join(ids)}. Another computer "
        "made them, or a server whose ledger was lost. They are kept until someone deletes them: "
        "`vers-rlm-mcp machines delete ID`."
    )


def _note_time(removal: Removal, scope: anyio.CancelScope, seconds: float) -> None:
    if scope.cancelled_caught:
        removal.warnings.append(
            f"Deleting machines took longer than {seconds:.0f} s. A later sweep deletes the rest."
        )


def _is_kept(record: MachineRecord) -> bool:
    """Whether a machine is to be left alone. One whose id was never returned is not."""
    return record.kept and record.machine_id is not None
