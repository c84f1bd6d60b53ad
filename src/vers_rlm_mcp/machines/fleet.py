"""The fleet: the only way machines get made, and the one place that sees them gone."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from contextlib import suppress
from copy import copy
from typing import TYPE_CHECKING, Final, Self

import anyio

from vers_rlm_mcp.errors import BackendUnavailable, MachineError, UnknownHandle

from .base import INTENT
from .handles import NAMED_HANDLES, unknown_handle

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from .base import Backend, Commit, Machine, MachineInfo, MachineSpec
    from .ledger import CommitRecord, Ledger, MachineRecord

logger = logging.getLogger(__name__)

REMOVE_SECONDS: Final = 15.0
"""How long deleting may hold up a cancelled call or the end of the server: local machines take
milliseconds each, remote ones have been seen to take 7 s. What is not done then, a sweep does."""

DELETES_AT_ONCE: Final = 8
"""Enough that remote waits overlap, few enough for a service's rate limit."""

SETTLE_SECONDS: Final = 600.0
"""How long what was asked for may take to appear after that failed; remote boots take seconds."""


class Fleet:
    """Makes machines, each written to the ledger before it exists, and removes them.

    Handles that are returned are the caller's to close. Backend and ledger are not closed with it.

    Args:
        backend: Where machines come from.
        ledger: Where they are written down.
        max_machines: How many this server may have alive at once, for each principal.
        principal: The client on whose behalf all is done. It sees, and can use, only what was made
            for it; that there is anything else, no answer and no error tells. None is whoever runs
            the server, to whom all belongs.
    """

    def __init__(
        self, backend: Backend, ledger: Ledger, *, max_machines: int, principal: str | None = None
    ) -> None:
        self.backend = backend
        self.ledger = ledger
        self.principal = principal
        self._max_machines = max_machines
        self._overdue: set[int] = set()
        """Records of machines that had to be deleted: what of them still lives, a sweep deletes.

        Shared by all that `seen_by` returns.
        """

    def seen_by(self, principal: str) -> Fleet:
        """The same machines, as a client of the server may see and use them."""
        fleet = copy(self)
        fleet.principal = principal
        return fleet

    async def create(
        self, spec: MachineSpec | None = None, *, run: str | None = None, keep: bool = False
    ) -> Machine:
        """Make a fresh machine.

        Args:
            spec: What is wanted of it.
            run: The run it is made for: it is deleted with it, unless kept.
            keep: Let it outlive its run and this server.

        Raises:
            MachineError: The limit is reached (the message says what can be deleted), or the
                backend could not make it.
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
        """Make a machine from a commit; otherwise as `create`. Raises `UnknownHandle` too."""

        async def make(labels: Mapping[str, str]) -> Sequence[Machine]:
            return [await self.backend.restore(commit_id, spec, labels=labels)]

        if self.principal is None or commit_id in self._own_commits():
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
        """Make `count` copies of a machine, all from one instant; otherwise as `create`."""

        async def make(labels: Mapping[str, str]) -> Sequence[Machine]:
            return await machine.branch(count, labels=labels)

        return await self._make(make, count=count, parent=machine.id, run=run, keep=keep)

    async def snapshot(
        self, machine: Machine, *, run: str | None = None, step: int | None = None
    ) -> Commit:
        """Commit a machine, and note at which step of which run.

        A commit that this server is killed before it can note is deleted by a later sweep: nobody
        was told of it.
        """
        intent = self.ledger.ask_commit(self.backend.name)
        commit = await machine.snapshot(intent=intent)
        self.ledger.committed(
            self.backend.name, commit, run=run, step=step, principal=self.principal
        )
        return commit

    async def attach(self, machine_id: str) -> Machine:
        """A handle on any machine that may be seen, whoever made it. Raises `UnknownHandle`."""
        if self._may_use(machine_id):
            try:
                return await self.backend.attach(machine_id)
            except UnknownHandle:
                if self.principal is None:
                    raise  # it names all machines, which is right for whom all belong to
        raise unknown_handle("machine", machine_id, [info.id for info in await self.list()])

    async def list(self) -> Sequence[MachineInfo]:
        """Every machine of the backend that may be seen, whoever made it, oldest first."""
        machines = await self.backend.list()
        if self.principal is None:
            return machines
        own = {record.machine_id for record in self._live()}
        return [info for info in machines if info.id in own]

    async def commits(self) -> Sequence[Commit]:
        """Every commit of the backend that may be seen, oldest first."""
        commits = await self.backend.commits()
        if self.principal is None:
            return commits
        own = self._own_commits()
        return [commit for commit in commits if commit.id in own]

    async def snapshots(self) -> Sequence[Commit]:
        """The same without the checkpoints of runs, which are too many to be listed with them."""
        checkpoints = {record.id for record in self.checkpoints()}
        return [commit for commit in await self.commits() if commit.id not in checkpoints]

    def checkpoints(self) -> Sequence[CommitRecord]:
        """The commits that runs made at their steps and that may be seen, oldest first."""
        records = self.ledger.checkpoints(self.backend.name)
        return [record for record in records if self.principal in (None, record.principal)]

    async def keep(self, machine_id: str) -> None:
        """Let a machine outlive its run and this server. Raises `UnknownHandle`."""
        await self._require_known(machine_id)
        self.ledger.keep(self.backend.name, machine_id)

    async def delete(self, machine_id: str) -> None:
        """Delete a machine. One that was deleted before is no error; raises `UnknownHandle`."""
        await self._require_known(machine_id)
        await self.backend.delete(machine_id)
        self.ledger.deleted(self.backend.name, machine_id)

    async def delete_commit(self, commit_id: str) -> None:
        """Delete a commit; machines made from it live on. One that is gone is no error."""
        if self.principal is not None and commit_id not in self._own_commits():
            return
        await self.backend.delete_commit(commit_id)
        self.ledger.commit_deleted(self.backend.name, commit_id)

    async def release_run(self, run: str) -> Sequence[str]:
        """Delete the machines of a run that are not kept, even when cancelled.

        Returns:
            A sentence on each that could not be deleted; a later sweep tries again.
        """
        own = [record for record in self._own() if record.run == run and not _is_kept(record)]
        return (await self._remove(own)).warnings

    async def sweep(self) -> Sequence[str]:
        """Delete what servers that no longer run left behind, and what this one could not delete.

        Kept machines are left alone. An error on one is logged and does not stop the others.

        Returns:
            The ids of the machines and commits that were deleted.
        """
        live = self.ledger.live(self.backend.name)
        self._overdue.intersection_update(record.number for record in live)
        removal = await self._remove([record for record in live if self._is_left_over(record)])
        for warning in removal.warnings:
            logger.warning("%s", warning)
        return [*removal.deleted, *await self._sweep_commits()]

    async def aclose(self) -> None:
        """Delete the machines that this server made and nobody asked to keep."""
        removal = await self._remove([record for record in self._own() if not _is_kept(record)])
        for warning in removal.warnings:
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
        """Ask for machines between writing down the intent and what came of it.

        After an error or a cancellation, also one that comes when the backend is nearly done,
        machines that bear the intent are looked for and deleted.
        """
        intent = self.ledger.ask(
            self.backend.name,
            count=count,
            limit=self._max_machines,
            run=run,
            parent=parent,
            keep=keep,
            principal=self.principal,
        )
        if intent is None:
            raise self._limit_reached(count)
        try:
            machines = await make(self._labels(intent, run))
            self.ledger.bind(intent, [machine.id for machine in machines])
        except BaseException:
            with suppress(BackendUnavailable):  # A full disk: then its end deletes them.
                self.ledger.abandon(intent)
            await self._remove(self.ledger.asked(intent))
            raise
        return machines

    def _labels(self, intent: str, run: str | None) -> Mapping[str, str]:
        """What a machine bears: the rest is for people who look at a service's own lists."""
        labels = {INTENT: intent, "server": self.ledger.owner}
        return labels if run is None else {**labels, "run": run}

    def _limit_reached(self, count: int) -> MachineError:
        alive = [record.machine_id for record in self._own() if record.machine_id]
        named = ", ".join(alive[:NAMED_HANDLES]) or "none can be deleted yet"
        return MachineError(
            f"{count} more would be too many machines: this server may have {self._max_machines} "
            f"at once (VERS_RLM_MAX_MACHINES). Delete what is not needed; oldest first: {named}."
        )

    async def _require_known(self, machine_id: str) -> None:
        name = self.backend.name
        if not self.ledger.knows(name, machine_id, principal=self.principal):
            known = [info.id for info in await self.list()]
            if machine_id not in known:
                raise unknown_handle("machine", machine_id, known)

    def _may_use(self, machine_id: str) -> bool:
        return self.principal is None or self.ledger.knows(
            self.backend.name, machine_id, principal=self.principal
        )

    def _is_left_over(self, record: MachineRecord) -> bool:
        if record.abandoned_at is not None:
            return True
        if _is_kept(record):
            return False
        return record.number in self._overdue or not self.ledger.is_alive(record.owner)

    def _live(self) -> Sequence[MachineRecord]:
        """The machines of all servers that may be seen."""
        live = self.ledger.live(self.backend.name)
        return [record for record in live if self.principal in (None, record.principal)]

    def _own(self) -> Sequence[MachineRecord]:
        """Of these, what this server made."""
        return [record for record in self._live() if record.owner == self.ledger.owner]

    def _own_commits(self) -> set[str]:
        commits = self.ledger.commits(self.backend.name)
        return {commit.id for commit in commits if commit.principal == self.principal}

    async def _sweep_commits(self) -> Sequence[str]:
        """Delete commits whose servers were killed before they could write them down."""
        name = self.backend.name
        owners = {commit.owner for commit in self.ledger.asked_commits(name)}
        dead = {owner for owner in owners if not self.ledger.is_alive(owner)}
        # Read again: a server may have written its last one down, and then ended.
        asked = {
            commit.intent: commit
            for commit in self.ledger.asked_commits(name)
            if commit.owner in dead
        }
        if not asked:
            return ()
        deleted: list[str] = []
        try:
            for commit in await self.backend.commits():
                if commit.intent in asked:
                    await self.backend.delete_commit(commit.id)
                    self.ledger.close_asked(asked.pop(commit.intent))
                    deleted.append(commit.id)
        except MachineError as error:
            logger.warning("Commits of servers that were killed cannot be deleted yet: %s", error)
        for late in asked.values():
            if time.time() - late.asked_at > SETTLE_SECONDS:
                self.ledger.close_asked(late)
        return deleted

    async def _remove(self, records: Sequence[MachineRecord]) -> _Removal:
        """Delete the machines of these records, several at a time, even when cancelled."""
        self._overdue.update(record.number for record in records)
        removal = _Removal(self.backend, self.ledger)
        with anyio.move_on_after(REMOVE_SECONDS, shield=True) as scope:
            await removal.run(records)
        if scope.cancelled_caught:
            removal.warnings.append(
                f"Deleting machines took longer than {REMOVE_SECONDS:.0f} s; a later sweep goes "
                "on with it."
            )
        return removal


class _Removal:
    """Deletes the machines of records, and gathers what came of it."""

    def __init__(self, backend: Backend, ledger: Ledger) -> None:
        self.deleted: list[str] = []
        self.warnings: list[str] = []
        self._backend = backend
        self._ledger = ledger
        self._limiter = anyio.CapacityLimiter(DELETES_AT_ONCE)

    async def run(self, records: Sequence[MachineRecord]) -> None:
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
                    await self._take(intent, ids)
            for intent in intents:
                await self._adopt_unlabelled(intent)
        except Exception as error:  # noqa: BLE001 - the machines whose ids are known must still go
            self.warnings.append(f"Machines whose making failed cannot be looked for: {error}")
        bound = [record for record in records if record.machine_id is not None]
        return [*bound, *(record for intent in intents for record in self._ledger.asked(intent))]

    async def _take(self, intent: str, machine_ids: Sequence[str]) -> None:
        """Bind machines to their record, or delete them at once where that cannot be written."""
        try:
            self._ledger.bind(intent, machine_ids)
        except BackendUnavailable:  # The disk is full, perhaps of them.
            for machine_id in machine_ids:
                await self._backend.delete(machine_id)
            raise

    async def _adopt_unlabelled(self, intent: str) -> None:
        """Bind copies that a server was killed before it could label, where it is sure of them."""
        records = self._ledger.asked(intent)
        parent = records[0].parent
        missing = [record for record in records if record.machine_id is None]
        if parent is None or not missing or self._is_being_copied(parent):
            return
        found = [
            machine_id
            for machine_id in await self._backend.unlabelled(parent, records[0].asked_at)
            if not self._ledger.knows(self._backend.name, machine_id)
        ]
        certain = self._ledger.has_to_itself(self._backend.name, parent)
        if certain and len(found) <= len(missing):
            bound = [record.machine_id for record in records if record.machine_id is not None]
            self._ledger.bind(intent, [*bound, *found])
        elif found:
            self.warnings.append(
                f"A server that was killed may have made {', '.join(found)} from {parent}, without "
                "a label to tell; so may somebody else. Delete what nobody needs."
            )

    def _is_being_copied(self, parent: str) -> bool:
        """Whether a server that runs may have copies of this that are not labelled yet."""
        return any(
            record.parent == parent
            and record.machine_id is None
            and self._ledger.is_alive(record.owner)
            for record in self._ledger.live(self._backend.name)
        )

    async def _remove(self, record: MachineRecord) -> None:
        if record.machine_id is None:
            if time.time() - record.asked_at > SETTLE_SECONDS:
                self._ledger.closed(record)
            return
        try:
            async with self._limiter:
                await self._backend.delete(record.machine_id)
            self._ledger.closed(record)
            self.deleted.append(record.machine_id)
        except Exception as error:  # noqa: BLE001 - trouble with one must not save the others
            self.warnings.append(f"Machine {record.machine_id} could not be deleted: {error}")


def _is_kept(record: MachineRecord) -> bool:
    """Whether to leave a machine alone; one that nobody was ever given is not worth keeping."""
    return record.kept and record.machine_id is not None


def _by_intent(infos: Iterable[MachineInfo]) -> Mapping[str, Sequence[str]]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for info in infos:
        if INTENT in info.labels:
            found[info.labels[INTENT]].append(info.id)
    return found
