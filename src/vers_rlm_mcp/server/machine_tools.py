# ruff: noqa: D101, N803, PLC0415 - the fields of an answer are explained by its tool; a tool's
# parameters are named as the client sends them; the rooms below are imported by the first call
"""Tools that make, copy, compare and delete machines."""

from typing import TYPE_CHECKING, Annotated, Any, TypedDict, cast

from mcp.server.mcpserver import Context
from pydantic import Field

from vers_rlm_mcp.errors import UsageError

from .application import NO_CURRENT, Application, application
from .arguments import Options
from .bounds import utc
from .command_tools import VmId
from .progress import Progress
from .schemas import IN_WORDS
from .toolset import (
    ADDS,
    READS,
    REPLACES,
    Answer,
    Toolset,
    without_none,
)

if TYPE_CHECKING:
    from vers_rlm_mcp.machines import MachineInfo, MachineSpec
    from vers_rlm_mcp.runs import Workbench

MAX_BRANCHES = 16
"""Copies made by one call; the limit on machines alive may be lower."""

MAX_PROCESSORS = 1024
MAX_MIB = 1 << 24
"""16 TiB: more than any machine has, and little enough to be counted in bytes."""

PAGE = 50
"""Machines, and commits, in one answer of `vmList`."""

TOOLS = Toolset()


class VmConfig(Options):
    """The size of a machine; the server's settings fill in the rest."""

    vcpu_count: Annotated[int | None, Field(ge=1, le=MAX_PROCESSORS), IN_WORDS] = None
    mem_size_mib: Annotated[int | None, Field(ge=128, le=MAX_MIB), IN_WORDS] = None
    fs_size_mib: Annotated[int | None, Field(ge=64, le=MAX_MIB), IN_WORDS] = None

    def spec(self) -> "MachineSpec":
        """The size as the machines room takes it."""
        from vers_rlm_mcp.machines import MachineSpec

        return MachineSpec(**dict(self))


class NewMachineFields(TypedDict):
    vm_id: str


class MachineFields(NewMachineFields):
    """All that is sent about a new machine. The schema declares the id alone: it suffices."""

    backend: str
    isolation: str
    fidelity: str
    root: bool
    network: bool
    kept: bool
    notes: list[str]


@TOOLS.tool(
    "vmCreate",
    "Create a VM",
    ADDS,
    without_current="Create a fresh VM; its answer says what it can do.",
)
async def create_machine(
    context: Context,
    vmConfig: VmConfig | None = None,
    keepVM: Annotated[
        bool, Field(description="Keep it when the server ends. Default false")
    ] = False,
) -> Answer[NewMachineFields]:
    """Create a fresh VM, which becomes the current one; its answer says what it can do."""
    bench = await application(context).workbench()
    async with Progress(context.report_progress, "Creating a VM"):
        info = await bench.create(vmConfig.spec() if vmConfig else None, keep=keepVM)
    return await _describe(bench, info, kept=keepVM)


async def _describe(
    bench: "Workbench", info: "MachineInfo", *, kept: bool = False
) -> Answer[MachineFields]:
    can = (await bench.machine(info.id)).capabilities
    facts = [
        f"{info.backend}, isolation: {can.isolation}",
        f"snapshots keep: {'disk and memory' if can.fidelity == 'memory' else 'the disk'}",
        "root" if can.root else "system directories read-only",
        "network" if can.network else "no network",
        *(["kept when the server ends"] if kept else []),
    ]
    return Answer(
        {
            "vm_id": info.id,
            "backend": info.backend,
            "isolation": can.isolation,
            "fidelity": can.fidelity,
            "root": can.root,
            "network": can.network,
            "kept": kept,
            "notes": list(can.notes),
        },
        "\n".join([f"VM {info.id} ({'; '.join(facts)})", *can.notes]),
    )


class ListFields(TypedDict):
    current: str | None
    vms: list[dict[str, Any]]
    commits: list[dict[str, Any]]
    next_offset: int | None


@TOOLS.tool("vmList", "List VMs and commits", READS)
async def list_machines(
    context: Context, offset: Annotated[int, Field(ge=0)] = 0
) -> Answer[ListFields]:
    """List VMs and commits with their ids and origins, newest first."""
    app = application(context)
    bench = await app.workbench()
    all_machines, all_commits = await bench.list()
    current = bench.current if app.has_current else None
    end = offset + PAGE
    machines, commits = all_machines[::-1][offset:end], all_commits[::-1][offset:end]
    next_offset = end if max(len(all_machines), len(all_commits)) > end else None
    lines = [
        f"VM {machine.id}, created {utc(machine.created_at)}"
        + (f" from {machine.parent}" if machine.parent else "")
        + ("" if machine.running else " (stopped)")
        + (" ← current" if machine.id == current else "")
        for machine in machines
    ]
    lines += [
        f"Commit {it.id} of {it.machine_id} ({it.fidelity}), made {utc(it.created_at)}"
        for it in commits
    ]
    if next_offset is not None:
        lines.append(f"[there is more; continue with offset {next_offset}]")
    fields: ListFields = {
        "current": current,
        "vms": [
            without_none(
                {
                    "id": machine.id,
                    "created_at": machine.created_at,
                    "parent": machine.parent,
                    "running": machine.running,
                }
            )
            for machine in machines
        ],
        "commits": [
            {
                "id": commit.id,
                "vm_id": commit.machine_id,
                "created_at": commit.created_at,
                "fidelity": commit.fidelity,
            }
            for commit in commits
        ],
        "next_offset": next_offset,
    }
    return Answer(fields, "\n".join(lines) or "No VMs and no commits.")


class DeletedFields(TypedDict):
    vm_id: str


@TOOLS.tool("vmDelete", "Delete a VM", REPLACES)
async def delete_machine(context: Context, vmId: str) -> Answer[DeletedFields]:
    """Delete a VM and all in it; commits and branches of it live on."""
    await (await application(context).workbench()).delete(vmId)
    return Answer({"vm_id": vmId}, f"Deleted VM {vmId}; its commits and branches live on.")


class SnapshotFields(TypedDict):
    commit_id: str
    vm_id: str
    fidelity: str
    notes: list[str]


@TOOLS.tool("vmSnapshot", "Snapshot a VM", ADDS)
async def snapshot_machine(context: Context, vmId: VmId = None) -> Answer[SnapshotFields]:
    """Snapshot a VM as a commit to return to with vmRestore, before anything risky."""
    from vers_rlm_mcp.runs import not_carried

    bench, machine_id = await application(context).target(vmId)
    async with Progress(context.report_progress, "The snapshot"):
        made = await bench.snapshot(machine_id)
    commit, notes = made.commit, [*made.commit.notes, *not_carried(made.carried)]
    return Answer(
        {
            "commit_id": commit.id,
            "vm_id": machine_id,
            "fidelity": commit.fidelity,
            "notes": notes,
        },
        "\n".join([f"Commit {commit.id} of VM {machine_id} (keeps: {commit.fidelity})", *notes]),
    )


class BranchFields(TypedDict):
    vm_ids: list[str]
    parent: str
    fidelity: str
    notes: list[str]


@TOOLS.tool(
    "vmBranch",
    "Branch a VM",
    ADDS,
    without_current="Fork a live VM into identical copies, to try several approaches in parallel: "
    "pass their ids as vmIds. The original continues.",
)
async def branch_machine(
    context: Context,
    vmId: VmId = None,
    count: Annotated[
        int, Field(ge=1, le=MAX_BRANCHES, description="Default 1, max 16"), IN_WORDS
    ] = 1,
) -> Answer[BranchFields]:
    """Fork a live VM into identical copies, to try several approaches in parallel.

    The original stays current; pass copies' ids as vmId or vmIds, or vmSwitch to one.
    """
    from vers_rlm_mcp.runs import not_carried

    bench, machine_id = await application(context).target(vmId)
    async with Progress(context.report_progress, "Branching"):
        made = await bench.branch(count, machine_id)
    ids, notes = list(made.ids), list(not_carried(made.carried))
    head = f"Branched VM {machine_id} into {', '.join(ids)} (kept: {made.fidelity})"
    return Answer(
        {"vm_ids": ids, "parent": machine_id, "fidelity": made.fidelity, "notes": notes},
        "\n".join([head, *notes]),
    )


class CurrentFields(TypedDict):
    vm_id: str | None
    previous: str | None


@TOOLS.tool("vmSwitch", "Switch the current VM", ADDS, without_current="")
async def switch_machine(context: Context, vmId: str) -> Answer[CurrentFields]:
    """Make another VM the current one."""
    app = application(context)
    _require_current(app)
    bench = await app.workbench()
    previous = await bench.switch(vmId)
    return _current(bench, previous)


@TOOLS.tool(
    "vmRestore",
    "Restore a commit",
    ADDS,
    without_current="Make a new VM from a commit of vmSnapshot.",
)
async def restore_commit(context: Context, commitId: str) -> Answer[NewMachineFields]:
    """Make a new VM from a commit of vmSnapshot; it becomes the current one."""
    bench = await application(context).workbench()
    async with Progress(context.report_progress, "Restoring"):
        info = await bench.restore(commitId)
    return await _describe(bench, info)


class DiffFields(TypedDict):
    counts: dict[str, int]
    """How many differences there are of each kind, including those omitted below."""
    files: list[dict[str, str]]
    """Each with ``path``, ``change`` (added, removed or changed), ``summary`` and ``diff``."""
    facts: list[dict[str, str]]
    """Packages, processes and variables: ``kind``, ``name``, ``old`` and ``new``."""
    notes: list[str]
    """Sentences on what was not compared, or cannot be read."""


@TOOLS.tool(
    "vmDiff",
    "Compare VMs",
    READS,
    without_current="Tell how files, packages, processes and variables differ in b from a: VMs or "
    "commits.",
)
async def compare_machines(
    context: Context,
    a: str,
    b: VmId = None,
    path: Annotated[str | None, Field(description="Directory. Default: all")] = None,
) -> Answer[DiffFields]:
    """Tell how files, packages, processes and variables differ in b from a: VMs or commits."""
    from vers_rlm_mcp.machines import resolve_path
    from vers_rlm_mcp.runs import compare

    app = application(context)
    bench = await app.workbench()
    first, second = [given or (await app.target(None))[1] for given in (a, b)]
    async with Progress(context.report_progress, "Comparing"):
        difference = await compare(bench, first, second, path=resolve_path(path or "/"))
    fields = cast("DiffFields", difference.as_json())
    return Answer(fields, difference.text)


@TOOLS.tool("currentVmId", "Current VM", READS, without_current="")
async def current_machine(context: Context) -> Answer[CurrentFields]:
    """Tell which VM the tools act on when vmId is left out."""
    app = application(context)
    _require_current(app)
    return _current(await app.workbench())


def _current(bench: "Workbench", previous: str | None = None) -> Answer[CurrentFields]:
    fields: CurrentFields = {"vm_id": bench.current, "previous": previous}
    if bench.current is None:
        return Answer(fields, "There is no current VM; the first call that needs one makes it.")
    former = f" (before: {previous})" if previous else ""
    return Answer(fields, f"The current VM is {bench.current}{former}")


def _require_current(app: Application) -> None:
    if not app.has_current:
        raise UsageError(f"{NO_CURRENT}. Pass vmId to each call; vmList shows the ids.")
