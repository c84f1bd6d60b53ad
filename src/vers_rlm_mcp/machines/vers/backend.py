"""Makes and finds machines of the Vers service."""

# ruff: noqa: D102 - the methods promise what the interface's docstrings say

from __future__ import annotations

import re
import uuid
from collections import defaultdict
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import anyio

from vers_rlm_mcp.errors import MachineError, MachineFull, PathRefused, unknown_handle

from ..base import Capabilities, Commit, MachineInfo, MachineSpec
from ..daemon import Daemon, DaemonBackend, DaemonMachine, deleted
from .api import VersApi
from .faults import NotThere, Refused
from .making import (
    OWN_LABELS,
    PARENT,
    REQUEST,
    Claim,
    CommitClaim,
    Maker,
    Making,
    Origin,
    unlabelled,
)
from .reach import STOPPED, reach
from .schema import UUID_PATTERN, VmMetadata
from .shielded import run_all
from .ssh import Connector

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from .config import VersConfig
    from .schema import CommitInfo, Vm

BACKEND: Final = "vers"

DELETED: Final = "Deleted in vers-rlm-mcp; goes when the machines made from it are gone."
"""The description of a commit that the service keeps because machines descend from it."""

MACHINE_ID: Final = "/etc/machine-id"

COMMIT_PREFIX: Final = "vers-rlm-"

UNKNOWN: Final = VmMetadata()
"""The origin of a machine of which nothing was asked."""

_COMMIT_NAME = re.compile(f"{COMMIT_PREFIX}(.+)")
_UUID = re.compile(UUID_PATTERN)


class VersBackend(DaemonBackend):
    """The machines of one Vers organisation, whatever made them.

    Raises `SettingsError` if the configuration cannot be used. Nothing is sent before the first
    call.
    """

    name = BACKEND

    def __init__(self, config: VersConfig) -> None:
        super().__init__()
        self.config = config
        self.capabilities = Capabilities(
            isolation="vm",
            fidelity=config.fidelity,
            root=True,
            network=True,
            limits=dict.fromkeys(("memory", "cpu", "disk"), "virtual machine"),
            notes=("A machine of the Vers service costs money until it is deleted.",),
        )
        self._api = VersApi(config)
        self._connector = Connector(self._api)
        self._maker = Maker()
        self._origins: dict[str, VmMetadata] = {}
        """They never change."""
        self._copying: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)
        self._doomed: set[str] = set()
        """Commits that are to be deleted as soon as the service lets us."""

    async def create(
        self, spec: MachineSpec | None = None, *, labels: Mapping[str, str] | None = None
    ) -> DaemonMachine:
        spec = spec or MachineSpec()
        request = uuid.uuid4().hex
        config = {
            "vcpu_count": spec.vcpu_count or self.config.vcpu_count,
            "mem_size_mib": spec.mem_size_mib or self.config.mem_size_mib,
            "fs_size_mib": spec.fs_size_mib or self.config.fs_size_mib,
            "labels": {**(labels or {}), REQUEST: request},
        }

        async def post() -> Sequence[str]:
            return [await self._api.create(config)]

        claim = Claim(self._api, request, None, self._metadata)
        await claim.begin()
        making = Making(
            post,
            check=claim.check,
            find=claim.find,
            delete=self.delete,
            is_answering=self._api.is_answering,
            finish=self._ready,
            lasting=True,
        )
        (machine_id,) = await self._maker.make(making)
        return self.handle(machine_id)

    async def attach(self, machine_id: str) -> DaemonMachine:
        try:
            vm = await self._api.status(_check_id(machine_id))
        except NotThere:
            known = [vm.vm_id for vm in await self._api.vms()]
            raise unknown_handle("machine", machine_id, known) from None
        if vm.state in STOPPED:
            await self._api.wake(machine_id)
        return self.handle(machine_id)

    async def restore(
        self,
        commit_id: str,
        spec: MachineSpec | None = None,
        *,
        labels: Mapping[str, str] | None = None,
    ) -> DaemonMachine:
        """`commit_id` may also be ``repository:tag``, or a tag of the older kind."""
        origin = _origin(commit_id)

        async def post() -> Sequence[str]:
            if not commit_id or commit_id in self._doomed:
                raise NotThere("There is no such commit any more.")
            try:
                return [await self._api.restore(commit_id, origin.kind)]
            except Refused as error:  # a malformed name
                if error.status == HTTPStatus.BAD_REQUEST:
                    raise NotThere(str(error)) from None
                raise

        try:
            size = spec and spec.fs_size_mib
            (machine,) = await self._copy(origin, post, labels, fs_size_mib=size)
        except NotThere:
            known = [commit.id for commit in await self.commits()]
            raise unknown_handle("commit", commit_id, known) from None
        return machine

    async def list(self) -> Sequence[MachineInfo]:
        await self._maker.clean()
        # Nothing more is asked of machines, most of which may be other people's.
        vms = await self._api.vms()
        return [self._describe(vm, self._origins.get(vm.vm_id, UNKNOWN)) for vm in vms]

    async def commits(self) -> Sequence[Commit]:
        found = [info async for info in self._api.commits()]
        self._doomed |= {info.commit_id for info in found if info.description == DELETED}
        commits = [self._commit(info) for info in found if info.commit_id not in self._doomed]
        return sorted(commits, key=lambda commit: commit.created_at)

    async def delete(self, machine_id: str) -> None:
        if not _UUID.fullmatch(machine_id):
            return
        await self._api.delete(machine_id)
        self.disconnect(machine_id)
        self._connector.forget(machine_id)
        self._origins.pop(machine_id, None)
        self._copying.pop(machine_id, None)
        await self._delete_doomed()

    async def unlabelled(self, parent: str, asked_at: float) -> Sequence[str]:
        return await unlabelled(self._api, parent, asked_at)

    async def delete_commit(self, commit_id: str) -> None:
        if not _UUID.fullmatch(commit_id):
            return
        try:
            await self._api.delete_commit(commit_id)
        except Refused as error:
            if error.status != HTTPStatus.CONFLICT:
                raise
            await self._doom(commit_id)

    async def aclose(self) -> None:
        await super().aclose()
        await self._maker.clean()
        await self._api.aclose()

    # For machines

    async def info(self, machine_id: str) -> MachineInfo:
        """Describe a machine. Raises `MachineGone`."""
        try:
            status = await self._api.status(machine_id)
            return self._describe(status, await self._metadata(machine_id))
        except NotThere:
            raise deleted(machine_id) from None

    async def commit(self, machine_id: str, intent: str | None) -> Commit:
        """Take a commit of a machine. Raises `MachineGone`."""
        intent = intent or uuid.uuid4().hex
        name = COMMIT_PREFIX + intent

        async def post() -> Sequence[str]:
            return [await self._api.commit(machine_id, name, f"Of machine {machine_id}")]

        claim = CommitClaim(self._api, name)

        async def finish(ids: Sequence[str]) -> None:
            self._connector.pins.inherit(ids[0], machine_id)

        making = Making(
            post,
            check=claim.check,
            find=claim.find,
            delete=self._api.delete_commit,
            is_answering=self._api.is_answering,
            finish=finish,
            lasting=True,
        )
        try:
            (commit_id,) = await self._maker.make(making)
        except NotThere:
            raise deleted(machine_id) from None
        return self._commit(claim.made[commit_id])

    async def branch(
        self, machine_id: str, count: int, labels: Mapping[str, str]
    ) -> Sequence[DaemonMachine]:
        """Make copies of a machine, all from one instant. Raises `MachineGone`."""

        async def post() -> Sequence[str]:
            return await self._api.branch(machine_id, count)

        try:
            return await self._copy(Origin("machine", machine_id), post, labels, count=count)
        except NotThere:
            raise deleted(machine_id) from None

    async def connect(self, machine_id: str) -> Daemon:
        return await reach(self._connector, machine_id)

    # Making

    async def _copy(
        self,
        origin: Origin,
        post: Callable[[], Awaitable[Sequence[str]]],
        labels: Mapping[str, str] | None,
        *,
        count: int = 1,
        fs_size_mib: int | None = None,
    ) -> Sequence[DaemonMachine]:
        request = uuid.uuid4().hex
        claim = Claim(self._api, request, origin, self._metadata)
        marks = {**(labels or {}), REQUEST: request}
        copies: list[DaemonMachine] = []

        async def finish(machine_ids: Sequence[str]) -> None:
            for machine_id in machine_ids:  # first, since unlabelled copies are hard to find again
                parent = origin.id
                if origin.is_name:
                    parent = (await self._metadata(machine_id)).parent_commit_id or parent
                await self._api.label(machine_id, {**marks, PARENT: parent})
                self._connector.pins.inherit(machine_id, origin.id)
            if fs_size_mib:
                for machine_id in machine_ids:
                    await self._api.resize_disk(machine_id, fs_size_mib)
            await self._ready(machine_ids)
            copies.extend(self.handle(machine_id) for machine_id in machine_ids)
            await run_all([partial(_renew, copy) for copy in copies])

        async with self._copying[origin.id]:
            await claim.begin()
            making = Making(
                post,
                check=claim.check,
                find=None if origin.is_name else claim.find,
                delete=self.delete,
                is_answering=self._api.is_answering,
                finish=finish,
                count=count,
            )
            await self._maker.make(making)
        return copies

    async def _ready(self, machine_ids: Sequence[str]) -> None:
        await run_all([self.link(machine_id).ready for machine_id in machine_ids])

    # Looking

    async def _metadata(self, machine_id: str) -> VmMetadata:
        if machine_id not in self._origins:
            self._origins[machine_id] = await self._api.metadata(machine_id)
        return self._origins[machine_id]

    def _describe(self, vm: Vm, origin: VmMetadata) -> MachineInfo:
        parent = vm.labels.get(PARENT) or origin.parent_commit_id or origin.grandparent_vm_id
        return MachineInfo(
            id=vm.vm_id,
            backend=BACKEND,
            created_at=self._api.made_at(vm),
            parent=parent,
            labels={name: vm.labels[name] for name in vm.labels if not name.startswith(OWN_LABELS)},
            spec=MachineSpec(vcpu_count=origin.vcpu_count, mem_size_mib=origin.mem_size_mib),
            running=vm.state not in STOPPED,
        )

    def _commit(self, info: CommitInfo) -> Commit:
        return Commit(
            id=info.commit_id,
            machine_id=info.parent_vm_id or "",
            created_at=self._api.made_at(info),
            fidelity=self.config.fidelity,
            intent=ours.group(1) if (ours := _COMMIT_NAME.fullmatch(info.name or "")) else None,
        )

    # Commits that the service does not delete yet

    async def _doom(self, commit_id: str) -> None:
        """Mark a commit for deletion. Until then no server lists it."""
        async for info in self._api.commits():
            if info.commit_id == commit_id:
                await self._api.describe_commit(info, DELETED)
                self._doomed.add(commit_id)
                return

    async def _delete_doomed(self) -> None:
        async def delete(commit_id: str) -> None:
            with suppress(MachineError):  # its machines are still there; the next time, then
                await self._api.delete_commit(commit_id)
                self._doomed.discard(commit_id)

        await run_all([partial(delete, commit_id) for commit_id in self._doomed])


async def _renew(copy: DaemonMachine) -> None:
    """Give a copy its own machine id, if its disk permits: programs identify hosts by it."""
    with suppress(MachineFull, PathRefused):
        await copy.write(MACHINE_ID, f"{uuid.uuid4().hex}\n".encode(), mode=0o444)


def _check_id(machine_id: str) -> str:
    if not _UUID.fullmatch(machine_id):
        raise NotThere("The id of a machine is a UUID.")
    return machine_id


def _origin(commit: str) -> Origin:
    if _UUID.fullmatch(commit):
        return Origin("commit_id", commit)
    return Origin("ref" if ":" in commit else "tag_name", commit)
