"""The workbench: a current machine, on which commands, files and copies act by default.

The functions of the REPL and the low-level tools of the server do the same things; both come here.
Each conversation has its own workbench, and so does the client of a stdio server.
"""

from __future__ import annotations

from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import anyio

from vers_rlm_mcp.errors import KernelBusy, MachineError
from vers_rlm_mcp.kernel import Carried, Kernel, Variable, has_kernel
from vers_rlm_mcp.machines import (
    CommandResult,
    Commit,
    Fidelity,
    Fleet,
    Machine,
    MachineInfo,
    MachineSpec,
    expect_answer,
    read_bytes,
    resolve_path,
    run_command,
)

from . import events
from .declarations import repl_functions

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence

    from vers_rlm_mcp import rlm
    from vers_rlm_mcp.settings import Settings

DELETE_SECONDS = 15.0
"""How long deleting temporary machines may take; the end of the run deletes the rest."""

CHECKPOINT_BYTES = 256 * 1024 * 1024
"""Bytes of variables in a checkpoint: more would fill the disk and delay every step."""

NOTHING_SAVED = Carried((), {"all variables": "the kernel was at work, so they were not saved"})


@dataclass(frozen=True, slots=True)
class Connections:
    """The machines and kernels that workbenches of one run or client share."""

    machines: dict[str, Machine] = field(default_factory=dict[str, Machine])
    kernels: dict[str, Kernel] = field(default_factory=dict[str, Kernel])
    attaching: anyio.Lock = field(default_factory=anyio.Lock)
    connecting: anyio.Lock = field(default_factory=anyio.Lock)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A commit, and what it carries of the kernel's variables. None: no kernel, or all of them."""

    commit: Commit
    carried: Carried | None


@dataclass(frozen=True, slots=True)
class Branches:
    """Machines made from one instant of another, and what they carry of its variables."""

    ids: tuple[str, ...]
    fidelity: Fidelity
    carried: Carried | None


class Workbench:
    """Acts on machines by id, or on the current one when no id is given.

    Args:
        fleet: Where machines are made; it keeps the ledger.
        settings: Time limits, and the size of a machine when none is asked for.
        run: The run that machines made here belong to, if any.
        on_event: Called with events of machines made, switched to and deleted, and of commits.
        current: The machine to begin with.
        connections: Shared with another workbench.
    """

    def __init__(
        self,
        fleet: Fleet,
        settings: Settings,
        *,
        run: str | None = None,
        on_event: Callable[[rlm.Event], None] = lambda _: None,
        current: str | None = None,
        connections: Connections | None = None,
    ) -> None:
        self.current = current
        self.home: Kernel | None = None
        """The kernel whose cells act through this; it learns when the current machine changes."""
        self.home_id: str | None = None
        """Its machine."""
        self._claim = ExitStack()
        """Keeps the home kernel for this workbench alone."""
        self._fleet = fleet
        self._settings = settings
        self._run = run
        self._publish = on_event
        self._shared = connections or Connections()
        self.made: set[str] = set()
        """The machines that were made here."""

    async def machine(self, machine_id: str | None = None) -> Machine:
        """The machine with this id, or the current one, or a new one, which becomes current."""
        if known := self._shared.machines.get(machine_id or self.current or ""):
            return known
        # One call at a time creates or attaches; the others find the result.
        async with self._shared.attaching:
            machine_id = machine_id or self.current or (await self.create()).id
            if machine_id not in self._shared.machines:
                self._shared.machines[machine_id] = await self._fleet.attach(machine_id)
            return self._shared.machines[machine_id]

    def at(
        self, machine_id: str, *, on_event: Callable[[rlm.Event], None] | None = None
    ) -> Workbench:
        """Another workbench on the same machines, with its own current machine."""
        return Workbench(
            self._fleet,
            self._settings,
            run=self._run,
            on_event=on_event or self._publish,
            current=machine_id,
            connections=self._shared,
        )

    @asynccontextmanager
    async def copy(self) -> AsyncGenerator[Machine]:
        """A temporary copy of the current machine that no one else sees."""
        machine = await self.machine()
        (made,) = await self._fleet.branch(machine, run=self._run)
        async with self._delete_afterwards(made):
            yield made

    @asynccontextmanager
    async def using_machine(self, id: str | None = None) -> AsyncGenerator[Machine]:  # noqa: A002 - of either
        """A machine, or a temporary one restored from a commit; by default the current machine."""
        known = id is None or id in self._shared.machines
        if known or id not in {commit.id for commit in await self._fleet.commits()}:
            yield await self.machine(id)
            return
        made = await self._fleet.restore(id, run=self._run)
        async with self._delete_afterwards(made):
            yield made

    async def create(self, spec: MachineSpec | None = None, *, keep: bool = False) -> MachineInfo:
        """Make a machine; it becomes the current one."""
        machine = await self._fleet.create(spec, run=self._run, keep=keep)
        return await self._enter(machine, "created")

    async def switch(self, machine_id: str) -> str | None:
        """Make another machine the current one, and return the id of the one before."""
        known = machine_id in self._shared.machines
        machine = await self.machine(machine_id)
        if not known:
            self._publish(events.MachineMade(machine.id, "attached"))
        previous = self.current
        await self._move(machine.id)
        return previous

    async def restore(self, commit_id: str) -> MachineInfo:
        """Make a machine from a commit; it becomes the current one."""
        machine = await self._fleet.restore(commit_id, run=self._run)
        return await self._enter(machine, "restored", commit_id)

    async def snapshot(
        self, machine_id: str | None = None, *, carried: Carried | None = None
    ) -> Snapshot:
        """Commit a machine; on a backend that keeps only the disk, with the kernel's variables.

        `carried` says that a cell has just saved them itself, and what it could not save.
        """
        machine = await self.machine(machine_id)
        carried = carried or await self.save_variables(machine)
        commit = await self._fleet.snapshot(machine, run=self._run)
        self._publish(events.CommitMade(commit.id, machine.id, commit.fidelity))
        return Snapshot(commit, carried)

    async def checkpoint(self, machine_id: str, step: int) -> Snapshot:
        """Commit a run's machine after a step without publishing an event."""
        machine = await self.machine(machine_id)
        carried = await self.save_variables(machine, CHECKPOINT_BYTES)
        return Snapshot(await self._fleet.snapshot(machine, run=self._run, step=step), carried)

    async def move_in(self, machine_id: str) -> Kernel:
        """Make the kernel of a machine the home kernel, and keep it for this workbench alone.

        Raises `KernelBusy` if it is in use.
        """
        self.move_out()
        self._claim.enter_context(self.using_kernel(machine_id))
        self.home_id = machine_id
        self.home = await self.kernel(machine_id)
        return self.home

    def move_out(self) -> None:
        """Release the home kernel."""
        self.home = self.home_id = None
        self._claim.close()

    async def branch(
        self,
        count: int = 1,
        machine_id: str | None = None,
        *,
        carried: Carried | None = None,
    ) -> Branches:
        """Make `count` copies of a machine, all from one instant; the current machine stays."""
        machine = await self.machine(machine_id)
        carried = carried or await self.save_variables(machine)
        copies = await self._fleet.branch(machine, count, run=self._run)
        for made in copies:
            self._shared.machines[made.id] = made
            self.made.add(made.id)
            self._publish(events.MachineMade(made.id, "branched", machine.id))
        ids = tuple(made.id for made in copies)
        return Branches(ids, machine.capabilities.fidelity, carried)

    async def delete(self, machine_id: str) -> None:
        """Delete a machine, and its kernel with it."""
        await self._disconnect(machine_id)
        await self._fleet.delete(machine_id)
        self.made.discard(machine_id)
        self._publish(events.MachineDeleted(machine_id))
        if self.current == machine_id:
            self.current = None

    async def list(self) -> tuple[Sequence[MachineInfo], Sequence[Commit]]:
        """Every machine and commit that this workbench may use, without the checkpoints of runs."""
        return await self._fleet.list(), await self._fleet.snapshots()

    async def exec(
        self,
        command: str,
        *,
        machine_id: str | None = None,
        timeout: float | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        limit: int,
    ) -> CommandResult:
        """Run a shell command; `limit` bounds each of its two outputs, in bytes.

        Here and for files, a relative path starts in the workspace.
        """
        timeout = timeout or self._settings.exec_timeout
        with expect_answer(timeout):
            machine = await self.machine(machine_id)
        return await run_command(
            machine,
            command,
            timeout=timeout,
            cwd=resolve_path(cwd) if cwd else None,
            env=env,
            stdin=stdin,
            limit=limit,
        )

    async def read_file(
        self, path: str, *, machine_id: str | None = None, offset: int = 0, length: int
    ) -> bytes:
        """At most `length` bytes of a file; a negative `offset` counts from its end."""
        machine = await self.machine(machine_id)
        return await read_bytes(machine, resolve_path(path), offset=offset, length=length)

    async def write_file(self, path: str, data: bytes, *, machine_id: str | None = None) -> int:
        """Write a file, byte for byte, and return its size."""
        return await (await self.machine(machine_id)).write(resolve_path(path), data)

    async def kernel(self, machine_id: str | None = None, *, fresh: bool = False) -> Kernel:
        """The kernel of a machine. A copy's kernel starts with the variables that were carried.

        A `fresh` one starts with none; the kernel of that machine must not be in use.
        """
        machine = await self.machine(machine_id)
        async with self._shared.connecting:
            kernel = self._shared.kernels.get(machine.id)
            if kernel is None or kernel.closed:
                disk_only = machine.capabilities.fidelity == "disk"
                mib = (await machine.info()).spec.mem_size_mib or self._settings.mem_size_mib
                kernel = await Kernel.connect(
                    machine,
                    home_id=machine.id,
                    functions=repl_functions(),
                    restore_variables=disk_only and not fresh,
                    save_on_copy=disk_only,
                    memory=mib << 20,
                )
                self._shared.kernels[machine.id] = kernel
        return kernel

    @contextmanager
    def using_kernel(self, machine_id: str) -> Generator[None]:
        """Keep a kernel for one cell or run.

        Raises `KernelBusy` if a workbench of this server uses it already.
        """
        if machine_id in self._fleet.kernels_in_use:
            raise KernelBusy(
                f"The kernel of machine {machine_id} is at work for another call; wait until that "
                "is over, or branch the machine and use the branch."
            )
        self._fleet.kernels_in_use.add(machine_id)
        try:
            yield
        finally:
            self._fleet.kernels_in_use.discard(machine_id)

    async def variables(self, machine: Machine) -> Sequence[Variable]:
        """The variables of a machine's kernel, if it has one. Raises `KernelBusy` and others."""
        if not await has_kernel(machine):
            return ()
        with self.using_kernel(machine.id):
            return await (await self.kernel(machine.id)).variables()

    async def save_variables(self, machine: Machine, most: int | None = None) -> Carried | None:
        """Save the variables of a machine's kernel in its files, if its copies need that.

        At most `most` bytes of them.
        """
        kernel = self._shared.kernels.get(machine.id)
        if machine.capabilities.fidelity == "memory":
            return None
        if kernel is None or kernel.closed:
            return NOTHING_SAVED if machine.id in self._fleet.kernels_in_use else None
        try:
            return await kernel.save_variables(most)
        except KernelBusy:
            return NOTHING_SAVED

    async def aclose(self) -> None:
        """Close the connections to every kernel and machine. The fleet deletes the machines."""
        try:
            for machine_id in list(self._shared.machines):
                await self._disconnect(machine_id)
        finally:
            self.move_out()

    @asynccontextmanager
    async def _delete_afterwards(self, machine: Machine) -> AsyncGenerator[None]:
        self._shared.machines[machine.id] = machine
        try:
            yield
        finally:
            with anyio.move_on_after(DELETE_SECONDS, shield=True), suppress(MachineError):
                await self._disconnect(machine.id)
                await self._fleet.delete(machine.id)  # else the end of the run does

    async def _enter(
        self,
        machine: Machine,
        origin: Literal["created", "restored"],
        parent: str | None = None,
    ) -> MachineInfo:
        self._shared.machines[machine.id] = machine
        self.made.add(machine.id)
        self._publish(events.MachineMade(machine.id, origin, parent))
        await self._move(machine.id)
        return await machine.info()

    async def _move(self, machine_id: str) -> None:
        previous, self.current = self.current, machine_id
        if previous and previous != machine_id:
            self._publish(events.MachineSwitched(previous, machine_id))
        if self.home:
            await self.home.set_current(machine_id)

    async def _disconnect(self, machine_id: str) -> None:
        if kernel := self._shared.kernels.pop(machine_id, None):
            await kernel.aclose()
        if machine := self._shared.machines.pop(machine_id, None):
            await machine.aclose()
