"""The machines and commits of the emulated service, kept as machines of the bubblewrap backend.

Only the disk is copied: processes and memory of a machine do not go into its commits and branches.
"""

from __future__ import annotations

import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import anyio
import asyncssh

from vers_rlm_mcp.machines import MachineSpec, run_command

from . import kernels
from .answers import failed, nothing_to_branch, plain
from .faults import NotReady

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from vers_rlm_mcp.machines import Backend, Machine

    from .counts import Counts
    from .faults import Faults
    from .options import Options

State = Literal["booting", "running", "paused", "sleeping", "dead"]

SIGNAL_SECONDS: Final = 10.0
"""How long stopping or waking all processes of a machine may take."""


@dataclass(frozen=True, slots=True)
class Keys:
    """Who a machine is to SSH, and who may enter. Machines made from one image share them."""

    host: asyncssh.SSHKey
    client: asyncssh.SSHKey

    @staticmethod
    def new() -> Keys:
        """Keys for a new image."""
        return Keys(_new_key(), _new_key())


@dataclass(frozen=True, slots=True)
class Config:
    """What was asked for when the machine was made."""

    vcpu_count: int = 1
    mem_size_mib: int = 512
    fs_size_mib: int = 1024
    image_name: str = "default"


@dataclass(frozen=True, slots=True)
class Image:
    """What a copy has from what it is a copy of."""

    keys: Keys
    config: Config
    lineage: tuple[str, ...] = ()
    """The commits it descends from, the nearest first."""


@dataclass(slots=True, eq=False)
class Vm:
    """A machine, or the memory of one that was deleted."""

    machine: Machine
    image: Image
    labels: dict[str, str]
    parent_commit: str | None = None
    grandparent_vm: str | None = None
    booted_at: float = 0.0
    """On the monotonic clock."""
    ssh_ready_at: float = 0.0
    """On the monotonic clock; before that, SSH connections fail."""
    ssh_hangs: bool = False
    """Whether they are silent until then, instead of being closed."""
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    created_at: str = field(default_factory=lambda: now())
    deleted_at: str | None = None
    paused: bool = False
    awake: anyio.Event = field(default_factory=anyio.Event)
    """Set while the machine is not paused."""
    audible: anyio.Event = field(default_factory=lambda: happened())
    """Set while its SSH connections carry anything."""
    connections: set[anyio.CancelScope] = field(default_factory=set[anyio.CancelScope])
    """What its SSH connections run in."""

    def disconnect(self) -> None:
        """End its SSH connections."""
        for connection in self.connections:
            connection.cancel()


@dataclass(slots=True)
class CommitEntry:
    """A commit of the service."""

    snapshot: str
    """The id of the backend's commit."""
    image: Image
    vm: str
    has_kernel: bool
    """Whether a kernel's variables lie on its disk."""
    name: str | None = None
    description: str | None = None
    is_public: bool = False
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    created_at: str = field(default_factory=lambda: now())


def _new_key() -> asyncssh.SSHKey:
    return asyncssh.generate_private_key("ssh-ed25519")  # pyright: ignore[reportUnknownMemberType] - asyncssh leaves its options open


def happened() -> anyio.Event:
    """An event that is set."""
    event = anyio.Event()
    event.set()
    return event


def now(clock: float = 0.0) -> str:
    """The time as the service writes it, whose clock is so many seconds ahead."""
    return datetime.fromtimestamp(time.time() + clock, UTC).isoformat().replace("+00:00", "Z")


class Cloud:
    """Makes, copies and deletes machines, and refuses what the service would refuse."""

    def __init__(self, backend: Backend, options: Options, faults: Faults, counts: Counts) -> None:
        self._backend = backend
        self._options = options
        self._faults = faults
        self._counts = counts
        self.owner = str(uuid.uuid4())
        self.vms: dict[str, Vm] = {}
        """The deleted ones included."""
        self.commits: dict[str, CommitEntry] = {}
        self.tags: dict[str, str] = {}
        """Commits by ``repo:tag``, and by a name alone, which is the older way."""
        self.clock = 0.0
        """Seconds by which the service's clock is ahead of this host's."""
        self.tells_date = True
        """Whether answers have a Date header."""
        self.foreign: list[Any] = []
        """What ``GET /vms`` lists besides: machines of others in the organisation, as any JSON."""
        self._making = 0

    # Looking

    def now(self) -> str:
        """The time by the service's own clock."""
        return now(self.clock)

    @property
    def alive(self) -> Sequence[Vm]:
        """The machines that are there, oldest first."""
        return [vm for vm in self.vms.values() if vm.deleted_at is None]

    def vm(self, vm_id: str) -> Vm:
        """A machine that is there; a 404 if it is not."""
        vm = self.vms.get(vm_id)
        if vm is None or vm.deleted_at:
            raise failed(404, f"VM {vm_id} not found")
        return vm

    def foreign_vm(self, vm_id: str) -> Any:
        """A machine of others, if there is one of this id."""
        for vm in self.foreign:
            if isinstance(vm, dict) and cast("dict[str, Any]", vm).get("vm_id") == vm_id:
                return cast("Any", vm)
        return None

    def running(self, vm_id: str) -> Vm:
        """A machine that can be asked to do something; a 409 if it is paused."""
        vm = self.vm(vm_id)
        if vm.paused:
            raise failed(409, f"VM {vm_id} is {self.state(vm)}")
        return vm

    def commit_entry(self, commit_id: str) -> CommitEntry:
        """A commit; a 404 if there is none."""
        if commit_id not in self.commits:
            raise failed(404, f"commit {commit_id} not found")
        return self.commits[commit_id]

    def state(self, vm: Vm) -> State:
        """What a machine is doing, in the words of reading."""
        if vm.deleted_at:
            return "dead"
        if vm.paused:
            return "sleeping" if self._options.paused_state == "Sleeping" else "paused"
        return "booting" if time.monotonic() < vm.booted_at else "running"

    # Making

    async def create(self, config: Config, labels: Mapping[str, str], *, wait_boot: bool) -> Vm:
        """A fresh machine."""
        spec = MachineSpec(mem_size_mib=config.mem_size_mib, fs_size_mib=config.fs_size_mib)
        with self._room(1):
            machine = await self._backend.create(spec)
            if self._options.fork_kernels:
                await kernels.prepare(machine)
        vm = self._add(machine, Image(Keys.new(), config), labels, "POST /vm/new_root")
        vm.booted_at = time.monotonic() + self._options.boot_seconds
        vm.ssh_ready_at = max(vm.ssh_ready_at, vm.booted_at)
        if wait_boot:
            await anyio.sleep(self._options.boot_seconds)
        return vm

    async def restore(self, commit_id: str, at: str, count: int = 1) -> Sequence[Vm]:
        """Machines from a commit."""
        commit = self.commit_entry(commit_id)
        image = replace(commit.image, lineage=(commit.id, *commit.image.lineage))
        with self._room(count):
            machines = [await self._backend.restore(commit.snapshot) for _ in range(count)]
            await self._revive(machines, has_kernel=commit.has_kernel)
        made = [self._add(machine, image, {}, at) for machine in machines]
        for vm in made:
            vm.parent_commit, vm.grandparent_vm = commit.id, commit.vm
        return made

    async def branch(
        self, vm_id: str, at: str, count: int = 1, *, keep_paused: bool = False
    ) -> Sequence[Vm]:
        """Copies of a live machine."""
        vm = self.vm(vm_id)
        with self._room(count):
            has_kernel = await self._save_kernel(vm)
            machines = await vm.machine.branch(count)
            await self._after_copy(vm, keep_paused=keep_paused)
            await self._revive(machines, has_kernel=has_kernel)
        made = [self._add(machine, vm.image, {}, at) for machine in machines]
        for copy in made:
            copy.grandparent_vm = vm.id
        return made

    async def branch_tag(self, tag: str, at: str, count: int) -> Sequence[Vm]:
        """Machines from the commit that a tag or a ``repo:tag`` names."""
        if tag not in self.tags:
            raise nothing_to_branch(f"{tag} not found")
        return await self.restore(self.tags[tag], at, count)

    async def commit(
        self, vm_id: str, name: str | None, description: str | None, *, keep_paused: bool
    ) -> CommitEntry:
        """Freeze a machine."""
        vm = self.vm(vm_id)
        has_kernel = await self._save_kernel(vm)
        snapshot = await vm.machine.snapshot()
        await self._after_copy(vm, keep_paused=keep_paused)
        commit = CommitEntry(
            snapshot.id, vm.image, vm.id, has_kernel, name, description, created_at=self.now()
        )
        self.commits[commit.id] = commit
        self._counts.commits_made += 1
        return commit

    def tag(self, name: str, commit_id: str) -> None:
        """Name a commit: ``repo:tag``, or a bare name, the older way."""
        self.tags[name] = self.commit_entry(commit_id).id

    # Changing

    async def delete(self, vm_id: str) -> None:
        """Remove a machine. The service says 403 of one that it does not know."""
        if foreign := self.foreign_vm(vm_id):
            self.foreign.remove(foreign)
            return
        vm = self.vms.get(vm_id)
        if vm is None or vm.deleted_at:
            raise failed(403, f"VM {vm_id} not found or not owned by you")
        vm.deleted_at = self.now()
        vm.disconnect()
        self._counts.vms_deleted += 1
        await vm.machine.delete()

    async def delete_commit(self, commit_id: str) -> None:
        """Remove a commit that no machine descends from."""
        commit = self.commit_entry(commit_id)
        heirs = [vm.id for vm in self.alive if commit_id in vm.image.lineage]
        if heirs:
            raise failed(409, f"commit {commit_id} has VMs that descend from it: {heirs[0]}")
        del self.commits[commit_id]
        self.tags = {tag: target for tag, target in self.tags.items() if target != commit_id}
        self._counts.commits_deleted += 1
        await self._backend.delete_commit(commit.snapshot)

    async def set_state(self, vm_id: str, state: str) -> None:
        """Pause or resume; a word of the other vocabulary is a 422 that names the allowed ones."""
        paused = self._options.paused_state
        if state not in (paused, "Running"):
            raise plain(
                422,
                "Failed to deserialize the JSON body into the target type: state: unknown variant "
                f"`{state}`, expected `{paused}` or `Running`",
            )
        await self._pause(self.vm(vm_id), paused=state == paused)

    def resize(self, vm_id: str, size: int) -> None:
        """Note a larger disk. The machine's real limit stays what it was when it was made."""
        vm = self.vm(vm_id)
        if size <= vm.image.config.fs_size_mib:
            raise failed(
                400, f"fs_size_mib must be strictly larger than {vm.image.config.fs_size_mib}"
            )
        vm.image = replace(vm.image, config=replace(vm.image.config, fs_size_mib=size))

    async def clear(self) -> None:
        """Remove every machine and commit, without counting it."""
        for vm in self.alive:
            vm.disconnect()
            await vm.machine.delete()
        for commit in self.commits.values():
            await self._backend.delete_commit(commit.snapshot)

    # Helpers

    @contextmanager
    def _room(self, count: int) -> Generator[None]:
        """Hold the places of machines that are being made."""
        limit = self._options.max_vms
        if limit is not None and len(self.alive) + self._making + count > limit:
            raise failed(403, f"quota exceeded: at most {limit} VMs")
        self._making += count
        try:
            yield
        finally:
            self._making -= count

    async def _save_kernel(self, vm: Vm) -> bool:
        """Let the kernel's variables go into the next copy, if that is wanted."""
        return self._options.fork_kernels and not vm.paused and await kernels.save(vm.machine)

    async def _revive(self, machines: Sequence[Machine], *, has_kernel: bool) -> None:
        """Let copies have the kernel that their disk tells of, if that is wanted."""
        for machine in machines if self._options.fork_kernels else ():
            await kernels.prepare(machine)
            if has_kernel:
                await kernels.revive(machine)

    async def _after_copy(self, vm: Vm, *, keep_paused: bool) -> None:
        """Taking a copy wakes what was stopped; stop it again where it was or should be."""
        if keep_paused or vm.paused:
            await self._pause(vm, paused=True)

    async def _pause(self, vm: Vm, *, paused: bool) -> None:
        """Stop or wake every process of a machine; what is asked of it meanwhile waits."""
        if paused and vm.awake.is_set():
            vm.awake = anyio.Event()
        vm.paused = paused
        script = "kill -STOP -1" if paused else "kill -CONT -1"
        # Without any process there is nobody to tell, which kill says with a status.
        await run_command(vm.machine, ["sh", "-c", script], timeout=SIGNAL_SECONDS)
        if not paused:
            vm.awake.set()

    def _add(self, machine: Machine, image: Image, labels: Mapping[str, str], at: str) -> Vm:
        vm = Vm(machine, image, dict(labels), created_at=self.now())
        vm.awake.set()
        if late := self._faults.take(NotReady, at, vm.id):
            vm.ssh_ready_at = time.monotonic() + late.seconds
            vm.ssh_hangs = late.hang
        self.vms[vm.id] = vm
        self._counts.vms_made += 1
        return vm
