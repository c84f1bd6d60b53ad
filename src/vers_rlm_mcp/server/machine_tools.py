# ruff: noqa: N803, PLC0415 - a tool's parameters are named as the client sends them; the rooms below
# are imported by the first call
"""The low-level tools: a machine in the hands of the client's own model.

Every tool takes an optional `vmId`. A stdio server has one client, and so one current machine, made
when it is first needed. Over HTTP there may be many clients and no connection to tell them apart:
each call names its machine. So it does where nothing may be made.
"""

import base64
import binascii
from typing import TYPE_CHECKING, Annotated, Literal

from mcp.server.mcpserver import Context
from mcp_types import ToolAnnotations
from pydantic import Field

from vers_rlm_mcp.errors import InputError, UsageError

from .application import Application
from .machine_answers import (
    BranchAnswer,
    CellAnswer,
    CurrentAnswer,
    DeletedAnswer,
    DiffAnswer,
    ExecAnswer,
    FileAnswer,
    ListAnswer,
    MachineAnswer,
    NewMachine,
    SnapshotAnswer,
    WrittenAnswer,
)
from .progress import Progress
from .toolset import Answer, Options, StrictTool

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vers_rlm_mcp.machines import MachineInfo, MachineSpec
    from vers_rlm_mcp.runs import Workbench

OUTPUT_BYTES = 24_000
"""Bytes of each output of a command in an answer: both are some 12,000 tokens, half of what clients
show before they cut."""

READ_BYTES = 32_768
"""Bytes of a file in an answer, unless asked for otherwise: some 8,000 tokens."""

READ_MAX = 262_144
"""Bytes of a file in one answer at most: more than clients show anyway."""

MAX_BRANCHES = 16
"""Copies made by one call; the limit on machines alive may be lower."""

PAGE = 50
"""Machines, and commits, in one answer of `vmList`."""

PROGRESS_CHARS = 500
"""Characters of a cell's output in a progress message."""

UTF8_MAX = 4
"""Bytes of the longest character in UTF-8."""

NO_CURRENT = "Over HTTP, or with --read-only, there is no current VM"

READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
ADDS = ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=False)
REPLACES = ToolAnnotations(read_only_hint=False, destructive_hint=True, open_world_hint=False)
RUNS_CODE = ToolAnnotations(read_only_hint=False, destructive_hint=True, open_world_hint=True)

VmId = Annotated[str | None, Field(description="Default: current VM")]


class VmConfig(Options):
    """The size of a machine; the server's settings fill in the rest."""

    vcpu_count: int | None = Field(default=None, ge=1)
    mem_size_mib: int | None = Field(default=None, ge=128)
    fs_size_mib: int | None = Field(default=None, ge=64)

    def spec(self) -> "MachineSpec":
        """As the machines room says it."""
        from vers_rlm_mcp.machines import MachineSpec

        return MachineSpec(self.vcpu_count, self.mem_size_mib, self.fs_size_mib)


class VmTools:
    """The low-level tools of one application."""

    def __init__(self, app: Application) -> None:
        self._app = app

    def tools(self) -> list[StrictTool]:
        """All of them, in the order in which clients list them."""
        table: list[tuple[Callable[..., Awaitable[Answer]], str, str, ToolAnnotations]] = [
            (self.exec, "exec", "Run a command", RUNS_CODE),
            (self.python, "python", "Run Python", RUNS_CODE),
            (self.read_file, "readFile", "Read a file", READS),
            (self.write_file, "writeFile", "Write a file", REPLACES),
            (self.vm_create, "vmCreate", "Create a VM", ADDS),
            (self.vm_list, "vmList", "List VMs and commits", READS),
            (self.vm_delete, "vmDelete", "Delete a VM", REPLACES),
            (self.vm_snapshot, "vmSnapshot", "Snapshot a VM", ADDS),
            (self.vm_branch, "vmBranch", "Branch a VM", ADDS),
            (self.vm_switch, "vmSwitch", "Switch the current VM", ADDS),
            (self.vm_restore, "vmRestore", "Restore a commit", ADDS),
            (self.vm_diff, "vmDiff", "Compare VMs", READS),
            (self.current_vm_id, "currentVmId", "Current VM", READS),
        ]
        return [StrictTool.of(*row) for row in table]

    async def exec(
        self,
        context: Context,
        command: str,
        vmId: VmId = None,
        timeout: Annotated[
            float | None, Field(gt=0, le=86_400, description="Seconds. Default 120, max 86400")
        ] = None,
        cwd: Annotated[str | None, Field(description="Default /workspace")] = None,
    ) -> ExecAnswer:
        """Run a shell command in a sandboxed Linux VM that can be snapshotted and branched.

        Files and processes persist between calls. Long output keeps head and tail.
        """
        bench, machine_id = await self._target(vmId)
        async with Progress(context.report_progress, "The command"):
            result = await bench.exec(
                command, machine_id=machine_id, timeout=timeout, cwd=cwd, limit=OUTPUT_BYTES
            )
        return ExecAnswer.of(machine_id, result)

    async def python(
        self,
        context: Context,
        code: str,
        vmId: VmId = None,
        timeout: Annotated[
            float | None, Field(gt=0, le=86_400, description="Seconds. Default 300, max 86400")
        ] = None,
    ) -> CellAnswer:
        """Run a Python cell in the VM's persistent REPL, whose variables survive between calls.

        The last expression is echoed; exec, readFile, writeFile and vm* are functions in it.
        """
        from vers_rlm_mcp.runs import run_cell

        bench, machine_id = await self._target(vmId)
        async with Progress(context.report_progress, "The cell") as progress:
            result, notes = await run_cell(
                bench,
                code,
                timeout=timeout or self._app.settings.cell_timeout,
                machine_id=machine_id,
                on_output=lambda text: progress.say(text[-PROGRESS_CHARS:], passing=True),
            )
        return CellAnswer.of(machine_id, result, notes)

    async def read_file(
        self,
        path: str,
        vmId: VmId = None,
        offset: Annotated[int, Field(description="Byte; negative: from the end. Default 0")] = 0,
        length: Annotated[
            int, Field(ge=1, le=READ_MAX, description="Bytes. Default 32768, max 262144")
        ] = READ_BYTES,
    ) -> FileAnswer:
        """Read a file in the VM, a page at a time; binary comes as base64."""
        bench, machine_id = await self._target(vmId)
        data = await bench.read_file(path, machine_id=machine_id, offset=offset, length=length + 1)
        return page_of(path, data, offset, length)

    async def write_file(
        self,
        path: str,
        content: str,
        vmId: VmId = None,
        encoding: Literal["utf-8", "base64"] = "utf-8",
    ) -> WrittenAnswer:
        """Write a file in the VM, replacing it if it exists; directories are made."""
        bench, machine_id = await self._target(vmId)
        size = await bench.write_file(path, _decoded(content, encoding), machine_id=machine_id)
        return WrittenAnswer(path=path, size=size)

    async def vm_create(
        self,
        context: Context,
        vmConfig: VmConfig | None = None,
        keepVM: Annotated[
            bool, Field(description="Keep it when the server ends. Default false")
        ] = False,
    ) -> NewMachine:
        """Create a fresh VM, which becomes the current one; its answer says what it can do."""
        bench = await self._app.workbench()
        async with Progress(context.report_progress, "Creating a VM"):
            info = await bench.create(vmConfig.spec() if vmConfig else None, keep=keepVM)
        return await self._described(bench, info, kept=keepVM)

    async def vm_list(self, offset: Annotated[int, Field(ge=0)] = 0) -> ListAnswer:
        """List VMs and commits with their ids and origins, newest first."""
        bench = await self._app.workbench()
        machines, commits = await bench.list()
        current = bench.current if self._app.has_current else None
        return ListAnswer.of(current, machines, commits, slice(offset, offset + PAGE))

    async def vm_delete(self, vmId: str) -> DeletedAnswer:
        """Delete a VM and all in it; commits and branches of it live on."""
        await (await self._app.workbench()).delete(vmId)
        return DeletedAnswer(vm_id=vmId)

    async def vm_snapshot(self, context: Context, vmId: VmId = None) -> SnapshotAnswer:
        """Snapshot a VM as a commit to return to with vmRestore, before anything risky."""
        from vers_rlm_mcp.runs import not_carried

        bench, machine_id = await self._target(vmId)
        async with Progress(context.report_progress, "The snapshot"):
            made = await bench.snapshot(machine_id)
        return SnapshotAnswer(
            commit_id=made.commit.id,
            vm_id=machine_id,
            fidelity=made.commit.fidelity,
            notes=(*made.commit.notes, *not_carried(made.carried)),
        )

    async def vm_branch(
        self,
        context: Context,
        vmId: VmId = None,
        count: Annotated[int, Field(ge=1, le=MAX_BRANCHES, description="Default 1, max 16")] = 1,
    ) -> BranchAnswer:
        """Fork a live VM into identical copies, to try several approaches in parallel.

        The original goes on and stays current; pass a copy's id as vmId, or vmSwitch to it.
        """
        from vers_rlm_mcp.runs import not_carried

        bench, machine_id = await self._target(vmId)
        async with Progress(context.report_progress, "Branching"):
            made = await bench.branch(count, machine_id)
        return BranchAnswer(
            vm_ids=[info.id for info in made.machines],
            parent=machine_id,
            fidelity=made.fidelity,
            notes=tuple(not_carried(made.carried)),
        )

    async def vm_switch(self, vmId: str) -> CurrentAnswer:
        """Make another VM the current one (stdio only; over HTTP pass vmId to each call)."""
        self._need_current()
        bench = await self._app.workbench()
        previous = await bench.switch(vmId)
        return CurrentAnswer(vm_id=bench.current, previous=previous)

    async def vm_restore(self, context: Context, commitId: str) -> NewMachine:
        """Make a new VM from a commit of vmSnapshot; it becomes the current one."""
        bench = await self._app.workbench()
        async with Progress(context.report_progress, "Restoring"):
            info = await bench.restore(commitId)
        return await self._described(bench, info)

    async def vm_diff(
        self,
        context: Context,
        a: str,
        b: str | None = None,
        path: Annotated[str | None, Field(description="Directory. Default: all")] = None,
    ) -> DiffAnswer:
        """Tell how files, packages, processes and variables differ in b from a: VMs or commits.

        Default b: current VM.
        """
        from vers_rlm_mcp.runs import compare

        bench = await self._app.workbench()
        first, second = [given or (await self._target(None))[1] for given in (a, b)]
        async with Progress(context.report_progress, "Comparing"):
            return DiffAnswer.of(await compare(bench, first, second, path=path or "/"))

    async def current_vm_id(self) -> CurrentAnswer:
        """Tell which VM the tools act on when vmId is left out."""
        self._need_current()
        return CurrentAnswer(vm_id=(await self._app.workbench()).current)

    async def ids(self) -> list[str]:
        """The ids of all machines, the newest first."""
        machines, _ = await (await self._app.workbench()).list()
        return [info.id for info in machines[::-1]]

    async def _target(self, machine_id: str | None) -> "tuple[Workbench, str]":
        """A workbench for a call, and the id of the machine that it means, which then exists."""
        bench = await self._app.workbench()
        if self._app.has_current:
            return bench, (await bench.machine(machine_id)).id
        if not machine_id:
            machines, _ = await bench.list()
            yours = ", ".join(info.id for info in machines[-PAGE:])
            raise UsageError(
                f"{NO_CURRENT}: pass vmId. "
                + (f"There are: {yours}." if yours else "There is none yet; vmCreate makes one.")
            )
        # A current machine of its own: cells of several clients must not move each other's.
        return bench.at(machine_id), (await bench.machine(machine_id)).id

    async def _described(
        self, bench: "Workbench", info: "MachineInfo", *, kept: bool = False
    ) -> MachineAnswer:
        machine = await bench.machine(info.id)
        return MachineAnswer.of(info, machine.capabilities, kept=kept)

    def _need_current(self) -> None:
        if not self._app.has_current:
            raise UsageError(f"{NO_CURRENT}. Pass vmId to each call; vmList shows the ids.")


def page_of(path: str, data: bytes, offset: int, length: int) -> FileAnswer:
    """One page of a file, from `data`, which holds a byte more than the page if there is more.

    A character that the page's end would cut is left to the next page.
    """
    page = data[:length]
    text = _as_text(page, more=len(data) > length)
    taken = len(text.encode()) if text is not None else len(page)
    following = offset + taken
    more = taken < len(data) and following != 0
    return FileAnswer(
        path=path,
        content=base64.b64encode(page).decode() if text is None else text,
        encoding="base64" if text is None else "utf-8",
        offset=offset,
        length=taken,
        next_offset=following if more else None,
    )


def _as_text(page: bytes, *, more: bool) -> str | None:
    """`page` as text, less a character cut at its end; None if it is not text."""
    for cut in range(UTF8_MAX if more else 1):
        try:
            return page[: len(page) - cut].decode() if cut < len(page) else None
        except UnicodeDecodeError:
            continue
    return "" if not page else None


def _decoded(content: str, encoding: Literal["utf-8", "base64"]) -> bytes:
    if encoding == "utf-8":
        return content.encode("utf-8", "surrogateescape")
    try:
        return base64.b64decode(content, validate=True)
    except binascii.Error as error:
        raise InputError(f"The content is not base64: {error}.") from error
