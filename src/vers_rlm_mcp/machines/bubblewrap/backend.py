"""Makes and finds machines that are namespaces over overlay layers."""

# ruff: noqa: D102 - the methods promise what the interface's docstrings say

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import anyio
from anyio import to_thread

from vers_rlm_mcp.errors import BackendUnavailable, MachineError, UnknownHandle, unknown_handle

from ..base import Backend, Capabilities, Commit, MachineInfo, MachineSpec
from ..daemon import DaemonMachine, deleted
from . import identity
from .bases import HOST_BASE, Base, open_base
from .cache import Cache
from .config import BubblewrapConfig
from .init_program import init_code
from .limits import (
    Limits,
    controllers,
    mechanisms,
    read_note,
    resource_limits,
    shortfalls,
    sweep,
)
from .records import (
    BACKEND,
    COMMIT_PREFIX,
    MACHINE_PREFIX,
    CommitRecord,
    MachineRecord,
    new_id,
)
from .running import Frozen, RunningMachine, not_made
from .sandbox import Plan, Sandbox
from .seccomp import call_filter
from .store import Store

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


MIB: Final = 1024 * 1024

ENVIRONMENT: Final[Mapping[str, str]] = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "LOGNAME": "root",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "SHELL": "/bin/sh",
    "TERM": "dumb",
    "USER": "root",
}
"""Environment variables of programs, unless the base sets other values."""

ORPHAN_SECONDS: Final = 5.0
"""How long processes that a dead server left running may take to end."""

ORPHAN_POLL: Final = 0.01
"""Seconds between two checks for that."""


class BubblewrapBackend(Backend):
    """Machines of this host, kept under a directory of the state directory."""

    name = BACKEND

    def __init__(self, state_dir: Path, config: BubblewrapConfig | None = None) -> None:
        self.config = config or BubblewrapConfig()
        self._base_name = str(self.config.base.resolve()) if self.config.base else HOST_BASE
        self._controllers = controllers()
        self._mapped = identity.may_map_ids()
        self._store = Store(state_dir / BACKEND, identity.FIRST_ID if self._mapped else None)
        self._cache = Cache.of_user(fallback=state_dir / BACKEND / "cache")
        self._running: dict[str, RunningMachine] = {}
        self._changing: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)
        """Held while a machine is started or deleted, by its id."""
        self._bases: dict[str, Base] = {}
        self._code = b""
        self._preparing = anyio.Lock()
        self.capabilities = self._capabilities()
        self._store.open()

    async def create(
        self, spec: MachineSpec | None = None, *, labels: Mapping[str, str] | None = None
    ) -> DaemonMachine:
        return await self._make(self._record(spec or MachineSpec(), labels or {}, parent=None))

    async def attach(self, machine_id: str) -> DaemonMachine:
        async with self._changing[machine_id]:
            running = self._running.get(machine_id)
            if running and running.sandbox.alive:
                return self._handle(running)
            record = self._store.machine(machine_id)
            if record is None:
                raise self._unknown_machine(machine_id)
            if running:
                await self._forget(running)
            return self._handle(await self._start(record))

    async def restore(
        self,
        commit_id: str,
        spec: MachineSpec | None = None,
        *,
        labels: Mapping[str, str] | None = None,
    ) -> DaemonMachine:
        async with self._store.locked():
            commit = self._store.commit(commit_id)
            if commit is None:
                raise unknown_handle("commit", commit_id, [c.id for c in self._store.commits()])
            record = self._record(spec or commit.spec, labels or {}, parent=commit_id)
            record = replace(record, layers=commit.layers, base=commit.base)
            self._add(record)
        return await self._make(record)

    async def list(self) -> Sequence[MachineInfo]:
        return [record.info(running=self._runs(record.id)) for record in self._store.machines()]

    async def commits(self) -> Sequence[Commit]:
        return [record.commit() for record in self._store.commits()]

    async def delete(self, machine_id: str) -> None:
        async with self._changing[machine_id]:
            running = self._running.get(machine_id)
            if running:
                await self._forget(running)
            if not self._store.has_remains(machine_id):
                return
            try:
                lock = await self._claim(machine_id)
            except UnknownHandle:  # Another server has deleted it.
                return
            try:
                await read_note(self._cgroup_note(machine_id)).remove()
                async with self._store.locked():
                    self._store.drop_machine(machine_id)
                    self._store.drop_garbage()
            finally:
                os.close(lock)
        self._changing.pop(machine_id, None)
        await self._empty_trash()

    async def delete_commit(self, commit_id: str) -> None:
        async with self._store.locked():
            self._store.drop_commit(commit_id)
            self._store.drop_garbage()
        await self._empty_trash()

    async def sweep(self) -> Sequence[str]:
        return await to_thread.run_sync(self._sweep)

    async def aclose(self) -> None:
        """Stop running machines. They are kept, like commits, and can be attached to again."""
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as tasks:
                for running in list(self._running.values()):
                    tasks.start_soon(self._forget, running)
            self._bases.clear()
            self._cache.close()

    # For machines

    async def info(self, machine_id: str) -> MachineInfo:
        """Describe a machine. Raises `MachineGone`."""
        return self._machine(machine_id).record.info(running=True)

    def release(self, machine_id: str) -> None:
        """Do nothing: a machine runs until it is deleted or this process ends."""

    async def commit(self, machine_id: str, intent: str | None) -> Commit:
        """Freeze a machine in a new commit."""
        machine = self._machine(machine_id)
        made: list[CommitRecord] = []

        def keep(frozen: Frozen) -> None:
            record = machine.record
            commit = CommitRecord(
                id=new_id(COMMIT_PREFIX),
                machine_id=record.id,
                created_at=time.time(),
                base=record.base,
                spec=record.spec,
                layers=frozen.layers,
                notes=frozen.notes,
                intent=intent,
            )
            self._store.add_commit(commit)
            made.append(commit)

        await machine.freeze(self._store, keep)
        return made[0].commit()

    async def branch(
        self, machine_id: str, count: int, labels: Mapping[str, str]
    ) -> Sequence[DaemonMachine]:
        """Make running copies of a machine."""
        machine = self._machine(machine_id)
        records: list[MachineRecord] = []

        def keep(frozen: Frozen) -> None:
            for _ in range(count):
                record = self._record(machine.record.spec, labels, parent=machine.machine_id)
                record = replace(record, layers=frozen.layers, base=machine.record.base)
                self._store.add(record)
                records.append(record)

        try:
            await machine.freeze(self._store, keep)
            made = await self._start_all(records)
        except BaseException:
            with anyio.CancelScope(shield=True):
                for record in records:
                    await self.delete(record.id)
            raise
        return [made[record.id] for record in records]

    # Making

    def _record(
        self, spec: MachineSpec, labels: Mapping[str, str], *, parent: str | None
    ) -> MachineRecord:
        return MachineRecord(
            id=new_id(MACHINE_PREFIX),
            created_at=time.time(),
            parent=parent,
            labels=dict(labels),
            spec=spec,
            base=self._base_name,
            layers=(),
        )

    async def _make(self, record: MachineRecord) -> DaemonMachine:
        try:
            if not self._store.home(record.id).exists():
                async with self._store.locked():
                    self._add(record)
            return self._handle(await self._start(record))
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.delete(record.id)
            raise

    def _add(self, record: MachineRecord) -> None:
        try:
            self._store.add(record)
        except OSError as error:
            raise not_made(error) from error

    async def _start(self, record: MachineRecord) -> RunningMachine:
        base = await self._prepare(record.base)
        lock = await self._claim(record.id)
        try:
            self._store.sign(lock)
            sandbox = await Sandbox.boot(self._plan(record, base, lock))
        except BaseException as error:
            os.close(lock)
            if isinstance(error, OSError):
                raise not_made(error) from error
            raise
        slots = frozenset(slot.name for slot in base.rootfs.slots)
        running = RunningMachine(record, sandbox, lock, slots)
        self._running[record.id] = running
        return running

    async def _start_all(self, records: Sequence[MachineRecord]) -> dict[str, DaemonMachine]:
        """Start machines at the same time; the first error ends the attempt."""
        made: dict[str, DaemonMachine] = {}
        failed: list[MachineError] = []
        async with anyio.create_task_group() as tasks:

            async def make(record: MachineRecord) -> None:
                try:
                    made[record.id] = self._handle(await self._start(record))
                except MachineError as error:
                    failed.append(error)
                    tasks.cancel_scope.cancel()

            for record in records:
                tasks.start_soon(make, record)
        if failed:
            raise failed[0]
        return made

    async def _claim(self, machine_id: str) -> int:
        """Lock a machine that does not run. Processes that a dead server left in it are killed.

        Raises MachineError when another server runs it, UnknownHandle when one has deleted it.
        """
        try:
            with anyio.move_on_after(ORPHAN_SECONDS):
                while (lock := self._store.take(machine_id)) is None:
                    if owner := self._store.owner(machine_id):
                        raise MachineError(
                            f"Machine {machine_id} runs under process {owner}; ask there."
                        )
                    for pid in self._store.orphans(machine_id):
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
                    await anyio.sleep(ORPHAN_POLL)
                return lock
        except FileNotFoundError:
            raise self._unknown_machine(machine_id) from None
        raise MachineError(
            f"Processes that a dead server left in machine {machine_id} have not ended within "
            f"{ORPHAN_SECONDS:g} s. Try again later."
        )

    async def _prepare(self, name: str) -> Base:
        """Open a machine's base, after preparing the code of PID 1."""
        async with self._preparing:
            try:
                if not self._code:
                    self._code = await to_thread.run_sync(init_code)
                    await to_thread.run_sync(sweep, self._controllers)
                if name not in self._bases:
                    self._bases[name] = await to_thread.run_sync(self._open_base, name)
            except (OSError, subprocess.SubprocessError) as error:
                # One of the files that could not be copied is enough.
                why = error.args[0][0][2] if isinstance(error, shutil.Error) else error
                raise BackendUnavailable(f"Machines cannot be prepared: {why}.") from error
        return self._bases[name]

    def _open_base(self, name: str) -> Base:
        return open_base(self._cache, name, self.config.network, mapped=self._mapped)

    def _plan(self, record: MachineRecord, base: Base, lock: int) -> Plan:
        limits = self._limits(record.spec)
        return Plan(
            hostname=record.id.replace(MACHINE_PREFIX, "machine-"),
            disk=self._store.disk(record.id),
            lock=lock,
            layers_root=self._store.layers,
            layers=record.layers,
            rootfs=base.rootfs,
            code=self._code,
            environment={**ENVIRONMENT, **base.environment},
            mapped=self._mapped,
            network=self.config.network,
            resources=resource_limits(limits),
            shared_memory=limits.memory // 4,
            limits=limits,
            controllers=self._controllers,
            cgroup_note=self._cgroup_note(record.id),
            call_filter=call_filter(),
        )

    def _limits(self, spec: MachineSpec) -> Limits:
        return Limits(
            memory=(spec.mem_size_mib or self.config.mem_size_mib) * MIB,
            processes=self.config.max_processes,
            processors=spec.vcpu_count or self.config.vcpu_count,
            disk=(spec.fs_size_mib or self.config.fs_size_mib) * MIB,
        )

    # Helpers

    def _sweep(self) -> Sequence[str]:
        try:
            removed = self._cache.sweep()
            if self._store.drop_old_bases():
                self._store.empty_trash()
                removed.append("bases in the state directory")
        except OSError as error:
            raise MachineError(f"Unused bases cannot be removed: {error}.") from error
        return removed

    def _capabilities(self) -> Capabilities:
        # Models read these in the prompt: other words, and runs of earlier versions ask again.
        notes = [
            "Only the usual top-level directories exist: none can be made in /.",
            "What was made before a snapshot or branch is of a frozen layer: renaming such a "
            "directory fails with EXDEV (mv copies it instead), and writing to such a file by one "
            "hard link leaves its others as they were.",
        ]
        root = self._mapped or self.config.base is not None
        if not root:
            notes.append("System directories are read-only: /usr belongs to the host's root.")
        return Capabilities(
            isolation="namespace",
            fidelity="disk",
            root=root,
            network=self.config.network != "off",
            limits={
                **mechanisms(self._controllers),
                **shortfalls(resource_limits(self._limits(MachineSpec()))),
            },
            notes=tuple(notes),
        )

    def _cgroup_note(self, machine_id: str) -> Path:
        return self._store.home(machine_id) / "cgroups"

    def _handle(self, running: RunningMachine) -> DaemonMachine:
        return DaemonMachine(self, running)

    def _machine(self, machine_id: str) -> RunningMachine:
        if machine_id not in self._running:
            raise deleted(machine_id)
        return self._running[machine_id]

    def _runs(self, machine_id: str) -> bool:
        running = self._running.get(machine_id)
        return running.sandbox.alive if running else bool(self._store.holder(machine_id))

    def _unknown_machine(self, machine_id: str) -> UnknownHandle:
        return unknown_handle("machine", machine_id, [item.id for item in self._store.machines()])

    async def _forget(self, running: RunningMachine) -> None:
        await running.end()
        if self._running.get(running.machine_id) is running:
            del self._running[running.machine_id]

    async def _empty_trash(self) -> None:
        """Remove files in a thread. If cancelled, the thread or the next call continues."""
        await to_thread.run_sync(self._store.empty_trash, abandon_on_cancel=True)
