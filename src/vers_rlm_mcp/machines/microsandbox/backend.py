"""Makes and finds machines of microsandbox."""

# ruff: noqa: D102 - the methods promise what the interface's docstrings say

from __future__ import annotations

import logging
import time
import uuid
from collections import defaultdict
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

import anyio
import anyio.lowlevel

from vers_rlm_mcp.errors import MachineError, PathRefused, unknown_handle

from ..base import Capabilities, Commit, MachineInfo, MachineSpec
from ..daemon import Daemon, DaemonBackend, DaemonMachine, deleted
from .config import MicrosandboxConfig
from .faults import NoSuchSandbox, NoSuchSnapshot
from .images import ensure_image
from .library import LIVE, Library
from .pipe import start_daemon
from .records import Records, new_name

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence
    from pathlib import Path

logger = logging.getLogger(__name__)

CLEAN_SECONDS: Final = 60.0
"""To remove what a failed request made: milliseconds, or seconds on emulated machines."""

RENEW_SECONDS: Final = 60.0
"""To write three small files: milliseconds, or seconds on emulated machines."""

HOSTNAME: Final = "/proc/sys/kernel/hostname"


class MicrosandboxBackend(DaemonBackend):
    """The machines of one state directory.

    Args:
        state_dir: Where machines and commits are recorded.
        config: Defaults for machines.
    """

    name = "microsandbox"

    def __init__(self, state_dir: Path, config: MicrosandboxConfig | None = None) -> None:
        super().__init__()
        self.config = config or MicrosandboxConfig()
        self.capabilities = Capabilities(
            isolation="vm",
            fidelity="memory",
            root=True,
            network=self.config.network != "off",
            limits=dict.fromkeys(("memory", "cpu", "disk"), "virtual machine"),
        )
        self._library = Library()
        directory = state_dir / "microsandbox"
        self._machines = Records(directory / "machines")
        self._commits = Records(directory / "commits")
        self._copies: defaultdict[str, anyio.Lock] = defaultdict(
            partial(anyio.Lock, fast_acquire=True)
        )
        """Held while a machine is frozen or copied, by its id."""

    async def create(
        self, spec: MachineSpec | None = None, *, labels: Mapping[str, str] | None = None
    ) -> DaemonMachine:
        config, spec = self.config, spec or MachineSpec()
        spec = MachineSpec(
            spec.vcpu_count or config.vcpu_count,
            spec.mem_size_mib or config.mem_size_mib,
            spec.fs_size_mib or config.fs_size_mib,
        )
        image = await ensure_image(self._library, config.image)
        async with self._making(1, None, labels, spec) as (name,):
            await self._library.create(name, image, spec, config)
        return self.handle(name)

    async def attach(self, machine_id: str) -> DaemonMachine:
        infos = await self.list()
        running = {info.id: info.running for info in infos}
        if machine_id not in running:
            raise unknown_handle("machine", machine_id, list(running))
        if not running[machine_id]:
            await self._library.wake(machine_id)
        return self.handle(machine_id)

    async def restore(
        self,
        commit_id: str,
        spec: MachineSpec | None = None,
        *,
        labels: Mapping[str, str] | None = None,
    ) -> DaemonMachine:
        commits = {commit.id: commit for commit in await self.commits()}
        if commit_id not in commits:
            raise unknown_handle("commit", commit_id, list(commits))
        fidelity = commits[commit_id].fidelity
        try:
            async with self._making(1, commit_id, labels, spec or MachineSpec()) as (name,):
                await self._library.restore(commit_id, name, fidelity, spec, self.config)
        except NoSuchSnapshot:  # deleted in the meantime
            raise unknown_handle("commit", commit_id, []) from None
        return self.handle(name)

    async def list(self) -> Sequence[MachineInfo]:
        records = self._machines.machines()
        states = await self._library.states() if records else dict[str, str]()
        return [_with_state(record, states[record.id]) for record in records if record.id in states]

    async def commits(self) -> Sequence[Commit]:
        records = self._commits.commits()
        there = await self._library.snapshots() if records else dict[str, str]()
        return [record for record in records if record.id in there]

    async def delete(self, machine_id: str) -> None:
        if machine_id not in {record.id for record in self._machines.machines()}:
            return
        self.disconnect(machine_id)
        await self._library.destroy(machine_id)
        self._machines.delete(machine_id)
        self._copies.pop(machine_id, None)
        await self._prune()

    async def delete_commit(self, commit_id: str) -> None:
        if commit_id not in {record.id for record in self._commits.commits()}:
            return
        await self._library.remove_snapshot(commit_id)
        self._commits.delete(commit_id)
        await self._prune()

    async def connect(self, machine_id: str) -> Daemon:
        try:
            return await start_daemon(self._library, machine_id)
        except NoSuchSandbox:
            raise deleted(machine_id) from None
        except (TimeoutError, anyio.BrokenResourceError) as error:
            reason = str(error) or "it is silent"
            raise MachineError(
                f"Machine {machine_id} does not let a program start: {reason}. Delete it and make "
                "another, or try again later."
            ) from None

    # For machines

    async def commit(self, machine_id: str, intent: str | None) -> Commit:
        """Take a commit of a machine. Raises `MachineGone`."""
        commit = Commit(
            id=new_name(),
            machine_id=machine_id,
            created_at=time.time(),
            fidelity="memory",
            intent=intent,
        )
        self._commits.write(commit)
        try:
            async with self._copying(machine_id):
                fidelity, why_not = await self._library.snapshot(machine_id, commit.id)
            await anyio.lowlevel.checkpoint_if_cancelled()
            if why_not:
                note = f"It carries the disk only, since its memory could not be kept: {why_not}"
                commit = replace(commit, fidelity=fidelity, notes=(note,))
                self._commits.write(commit)
        except BaseException as error:
            await self._clean(commit_ids=[commit.id])
            if isinstance(error, NoSuchSandbox):
                raise deleted(machine_id) from None
            raise
        return commit

    async def branch(
        self, machine_id: str, count: int, labels: Mapping[str, str]
    ) -> Sequence[DaemonMachine]:
        """Make copies of a machine, all from one instant. Raises `MachineGone`."""
        spec = (await self.info(machine_id)).spec
        try:
            async with self._making(count, machine_id, labels, spec) as names:
                async with self._copying(machine_id):
                    await self._library.fork(machine_id, names)
                await anyio.lowlevel.checkpoint_if_cancelled()
        except NoSuchSandbox:
            raise deleted(machine_id) from None
        return [self.handle(name) for name in names]

    # Making

    @asynccontextmanager
    async def _copying(self, machine_id: str) -> AsyncGenerator[None]:
        """Copy a machine once at a time: the package soon gives up a second one."""
        async with self._copies[machine_id]:
            yield

    @asynccontextmanager
    async def _making(
        self, count: int, parent: str | None, labels: Mapping[str, str] | None, spec: MachineSpec
    ) -> AsyncGenerator[Sequence[str]]:
        """Record machines before they are made, and give them identities afterwards.

        After an error or a cancellation they are removed.
        """
        names = [new_name() for _ in range(count)]
        for name in names:
            self._machines.write(
                MachineInfo(
                    id=name,
                    backend=self.name,
                    created_at=time.time(),
                    parent=parent,
                    labels=dict(labels or {}),
                    spec=spec,
                    running=True,
                )
            )
        try:
            yield names
            await self._renew_all(names)
        except BaseException:
            await self._clean(machine_ids=names)
            raise

    async def _renew_all(self, names: Sequence[str]) -> None:
        failures: list[MachineError] = []
        async with anyio.create_task_group() as tasks:
            for name in names:
                tasks.start_soon(self._renew, name, failures)
        if failures:
            raise failures[0]

    async def _renew(self, name: str, failures: list[MachineError]) -> None:
        """Give a machine its own host name and machine id."""
        machine = self.handle(name)
        why_not: object = f"it did not answer within {RENEW_SECONDS:g} s"
        texts = {HOSTNAME: name, "/etc/hostname": name, "/etc/machine-id": uuid.uuid4().hex}
        try:
            with anyio.move_on_after(RENEW_SECONDS):
                for path, text in texts.items():
                    await machine.write(path, f"{text}\n".encode())
                return
        except (MachineError, PathRefused) as error:
            why_not = error
        finally:
            await machine.aclose()
        failures.append(
            MachineError(f"Machine {name} cannot be given an identity of its own: {why_not}")
        )

    async def _clean(
        self, *, machine_ids: Sequence[str] = (), commit_ids: Sequence[str] = ()
    ) -> None:
        """Remove what a failed request made; what cannot be removed stays recorded."""
        with anyio.move_on_after(CLEAN_SECONDS, shield=True):
            try:
                for machine_id in machine_ids:
                    await self.delete(machine_id)
                for commit_id in commit_ids:
                    await self.delete_commit(commit_id)
            except MachineError as error:
                logger.warning("What a failed request made cannot be deleted yet: %s", error)

    async def _prune(self) -> None:
        """Free memory that only deleted machines and commits used. The next call finds the rest."""
        try:
            await self._library.prune()
        except MachineError as error:
            logger.warning("%s", error)


def _with_state(record: MachineInfo, state: str) -> MachineInfo:
    return replace(record, running=state in LIVE)
