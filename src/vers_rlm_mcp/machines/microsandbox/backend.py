"""Makes and finds machines of microsandbox."""

# ruff: noqa: D102 - the methods promise what the interface's docstrings say

from __future__ import annotations

import logging
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
import anyio.lowlevel

from vers_rlm_mcp.errors import MachineError, MachineGone, unknown_handle

from ..base import Backend, Capabilities, Commit, Machine, MachineInfo, MachineSpec
from ..daemon import DaemonMachine
from .config import MicrosandboxConfig
from .faults import NoSuchSandbox, NoSuchSnapshot
from .images import image_at_hand
from .library import LIVE, Library
from .link import Link
from .records import Records, new_name

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

logger = logging.getLogger(__name__)

CLEAN_SECONDS: Final = 60.0
"""For removing what was made for nothing; milliseconds, seconds where machines are emulated."""

RENEW_SECONDS: Final = 60.0
"""For a program that writes two small files; seconds where machines are emulated."""


class MicrosandboxBackend(Backend):
    """The machines of one state directory.

    Args:
        state_dir: Where it is written down which machines and commits there are.
        config: What machines are like.
    """

    name = "microsandbox"

    def __init__(self, state_dir: Path, config: MicrosandboxConfig | None = None) -> None:
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
        self._links: dict[str, Link] = {}

    async def create(
        self, spec: MachineSpec | None = None, *, labels: Mapping[str, str] | None = None
    ) -> Machine:
        config, spec = self.config, spec or MachineSpec()
        spec = MachineSpec(
            spec.vcpu_count or config.vcpu_count,
            spec.mem_size_mib or config.mem_size_mib,
            spec.fs_size_mib or config.fs_size_mib,
        )
        image = await image_at_hand(self._library, config.image)
        async with self._making(1, None, labels, spec) as (name,):
            await self._library.create(name, image, spec, config)
        return self._handle(name)

    async def attach(self, machine_id: str) -> Machine:
        infos = await self.list()
        running = {info.id: info.running for info in infos}
        if machine_id not in running:
            raise unknown_handle("machine", machine_id, list(running))
        if not running[machine_id]:
            await self._library.wake(machine_id)
        return self._handle(machine_id)

    async def restore(
        self,
        commit_id: str,
        spec: MachineSpec | None = None,
        *,
        labels: Mapping[str, str] | None = None,
    ) -> Machine:
        commits = {commit.id: commit for commit in await self.commits()}
        if commit_id not in commits:
            raise unknown_handle("commit", commit_id, list(commits))
        fidelity = commits[commit_id].fidelity
        try:
            async with self._making(1, commit_id, labels, spec or MachineSpec()) as (name,):
                await self._library.restore(commit_id, name, fidelity, spec, self.config)
        except NoSuchSnapshot:  # deleted meanwhile
            raise unknown_handle("commit", commit_id, []) from None
        return self._handle(name)

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
        if link := self._links.pop(machine_id, None):
            link.close(gone=True)
        await self._library.destroy(machine_id)
        self._machines.delete(machine_id)
        await self._prune()

    async def delete_commit(self, commit_id: str) -> None:
        if commit_id not in {record.id for record in self._commits.commits()}:
            return
        await self._library.remove_snapshot(commit_id)
        self._commits.delete(commit_id)
        await self._prune()

    async def aclose(self) -> None:
        for link in self._links.values():
            link.close()
        self._links.clear()

    # For machines

    async def info(self, machine_id: str) -> MachineInfo:
        """What is known of a machine. Raises `MachineGone`."""
        for info in await self.list():
            if info.id == machine_id:
                return info
        raise _gone(machine_id)

    async def commit(self, machine_id: str, intent: str | None) -> Commit:
        """Take a commit of a machine. Raises `MachineGone`."""
        commit = Commit(new_name(), machine_id, time.time(), "memory", intent=intent)
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
                raise _gone(machine_id) from None
            raise
        return commit

    async def branch(
        self, machine_id: str, count: int, labels: Mapping[str, str]
    ) -> Sequence[Machine]:
        """Make copies of a machine, all from one instant. Raises `MachineGone`."""
        spec = (await self.info(machine_id)).spec
        try:
            async with self._making(count, machine_id, labels, spec) as names:
                async with self._copying(machine_id):
                    await self._library.fork(machine_id, names)
                await anyio.lowlevel.checkpoint_if_cancelled()
        except NoSuchSandbox:
            raise _gone(machine_id) from None
        return [self._handle(name) for name in names]

    def release(self, link: Link) -> None:
        """Take back a handle; with the last one the connection goes."""
        link.handles -= 1
        if not link.handles:
            link.close()
            if self._links.get(link.machine_id) is link:
                del self._links[link.machine_id]

    # Making

    @asynccontextmanager
    async def _copying(self, machine_id: str) -> AsyncGenerator[None]:
        """Copy a machine once at a time: a copy that waits for another is soon given up there."""
        if machine_id not in self._links:  # deleted meanwhile
            raise _gone(machine_id)
        async with self._links[machine_id].copying:
            yield

    @asynccontextmanager
    async def _making(
        self, count: int, parent: str | None, labels: Mapping[str, str] | None, spec: MachineSpec
    ) -> AsyncGenerator[Sequence[str]]:
        """Write machines down before they are made, and give them identities afterwards.

        After an error or a cancellation nothing of them is left.
        """
        names = [new_name() for _ in range(count)]
        for name in names:
            self._machines.write(
                MachineInfo(
                    name, self.name, time.time(), parent, dict(labels or {}), spec, running=True
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
        """Give a machine a name and an identity of its own."""
        machine = self._handle(name)
        why_not: object = f"it did not answer within {RENEW_SECONDS:g} s"
        try:
            with anyio.move_on_after(RENEW_SECONDS):
                argv = ("python3", "-I", "-S", "-c", _renewal(), name)
                async with await machine.spawn(argv, cwd="/") as process:
                    status = await process.wait()
                if status.ok:
                    return
                why_not = status
        except MachineError as error:
            why_not = error
        finally:
            await machine.aclose()
        failures.append(
            MachineError(f"Machine {name} cannot be given an identity of its own: {why_not}")
        )

    async def _clean(
        self, *, machine_ids: Sequence[str] = (), commit_ids: Sequence[str] = ()
    ) -> None:
        """Remove what was made for nothing; what cannot be removed stays written down."""
        with anyio.move_on_after(CLEAN_SECONDS, shield=True):
            try:
                for machine_id in machine_ids:
                    await self.delete(machine_id)
                for commit_id in commit_ids:
                    await self.delete_commit(commit_id)
            except MachineError as error:
                logger.warning("What a failed request made cannot be deleted yet: %s", error)

    async def _prune(self) -> None:
        """Free memory that only what was deleted has used. What stays is found the next time."""
        try:
            await self._library.prune()
        except MachineError as error:
            logger.warning("%s", error)

    def _handle(self, machine_id: str) -> DaemonMachine[Link]:
        if machine_id not in self._links:
            self._links[machine_id] = Link(machine_id, self._library)
        return DaemonMachine(self, self._links[machine_id], self.capabilities)


def _with_state(record: MachineInfo, state: str) -> MachineInfo:
    return replace(record, running=state in LIVE)


def _gone(machine_id: str) -> MachineGone:
    return MachineGone(f"Machine {machine_id} was deleted; what ran on it is lost.")


@cache
def _renewal() -> str:
    return (Path(__file__).with_name("guest") / "renew.py").read_text()
