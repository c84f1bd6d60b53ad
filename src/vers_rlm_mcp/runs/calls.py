"""What a cell may ask of the host: each function of the REPL that the machine cannot do alone.

The guest is not trusted: its arguments are checked against the types below before anything is done.
Results are JSON; the guest gives them their face in Python.
"""

import base64
import posixpath
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cache
from types import MethodType
from typing import Annotated, Any

from pydantic import Base64Bytes, Field, JsonValue, ValidationError, validate_call

from vers_rlm_mcp.errors import UsageError
from vers_rlm_mcp.kernel import Carried, CellResult, HostCall
from vers_rlm_mcp.machines import WORKSPACE

from .differences import compare
from .workbench import Workbench

OUTPUT_BYTES = 1024 * 1024
"""Bytes of each output of a command on another machine that a cell gets back."""

FILE_BYTES = 20 * 1024 * 1024
"""Bytes of a file on another machine that a cell gets back: as base64 they fit into a frame."""

MAX_BRANCHES = 64
"""Copies made by one call; the limit on machines alive is usually lower."""

SUB_CALL_MAX_CHARS = 10_000_000
"""Characters of one prompt: beyond any model's context, and small enough for many at once."""

COPYING = frozenset({"vmSnapshot", "vmBranch", "branches"})
"""Calls before which the guest saves its variables."""

MAX_LISTED = 50
"""Variables that are named in one sentence: thousands would bury what else there is to say."""

KILLED = 128
"""What a shell adds to a signal's number to make it an exit code."""

Text = Annotated[str, Field(max_length=SUB_CALL_MAX_CHARS)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class MachineCalls:
    """The machine functions: what the low-level tools do, from within a cell.

    An instance is a `Handler` of the kernel.
    """

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench
        self._notes: list[str] = []

    async def __call__(self, call: HostCall) -> JsonValue:
        """Answer one call. Raises `VersRlmError`, which the cell gets as an exception."""
        method = self._table().get(call.name)
        if method is None:
            raise UsageError(f"There is no {call.name}() here; this needs a run of vers_rlm.")
        extra = {"carried": call.carried} if call.name in COPYING else {}
        try:
            return await _checked(method.__func__)(self, **{**call.arguments, **extra})
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
                for fault in error.errors(include_url=False, include_input=False)
            )
            raise UsageError(f"{call.name}() was called wrongly: {faults}.") from None

    def note(self, sentences: Sequence[str]) -> None:
        """Have the model told something with the next cell's result."""
        self._notes += sentences

    def take_notes(self) -> Sequence[str]:
        """What the model should know of the calls since the last time, in whole sentences."""
        notes, self._notes = self._notes, []
        return notes

    def _table(self) -> Mapping[str, MethodType]:
        return {
            "exec": self.exec,
            "readFile": self.read_file,
            "writeFile": self.write_file,
            "vmSnapshot": self.vm_snapshot,
            "vmBranch": self.vm_branch,
            "vmSwitch": self.vm_switch,
            "vmRestore": self.vm_restore,
            "vmDiff": self.vm_diff,
            "currentVmId": self.current_vm_id,
        }

    async def exec(self, command: str, timeout: Seconds | None = None) -> JsonValue:
        """Run a command on the current machine, which is not the kernel's own."""
        result = await self._bench.exec(command, timeout=timeout, limit=OUTPUT_BYTES)
        status = result.status
        code = None
        if status:
            code = status.code if status.signal is None else KILLED + status.signal
        return {"stdout": result.stdout.text, "stderr": result.stderr.text, "exit_code": code}

    async def read_file(self, path: str) -> JsonValue:
        """A file of the current machine, as base64."""
        data = await self._bench.read_file(_absolute(path), length=FILE_BYTES + 1)
        if len(data) > FILE_BYTES:
            raise UsageError(
                f"{path!r} is larger than {FILE_BYTES:,} bytes, too large to bring over from "
                "another machine; look at parts of it with exec()."
            )
        return base64.b64encode(data).decode()

    async def write_file(self, path: str, base64: Base64Bytes) -> JsonValue:
        """Write a file on the current machine."""
        return await self._bench.write_file(_absolute(path), base64)

    async def vm_snapshot(self, carried: Carried | None) -> JsonValue:
        """Commit the current machine; `carried` is what the guest saved of its variables."""
        made = await self._bench.snapshot(carried=carried)
        self._notes += [*made.commit.notes, *not_carried(made.carried)]
        return made.commit.id

    async def vm_branch(
        self, carried: Carried | None, count: Annotated[int, Field(ge=1, le=MAX_BRANCHES)] = 1
    ) -> JsonValue:
        """Copy the current machine; the id of the copy, or the ids when there are several."""
        made = await self._bench.branch(count, carried=carried)
        self._notes += not_carried(made.carried)
        ids: list[JsonValue] = [info.id for info in made.machines]
        return ids[0] if count == 1 else ids

    async def vm_switch(self, id: str) -> JsonValue:  # noqa: A002 - its name in the REPL
        """Make another machine the current one."""
        previous = await self._bench.switch(id)
        return f"Switched from {previous} to {id}"

    async def vm_restore(self, commit: str) -> JsonValue:
        """Make a machine from a commit and switch to it; its id."""
        return (await self._bench.restore(commit)).id

    async def vm_diff(self, a: str, b: str | None = None, path: str | None = None) -> JsonValue:
        """How a machine or commit, or the current machine, differs from another, as text."""
        return (await compare(self._bench, a, b, path=path or "/")).text

    async def current_vm_id(self) -> JsonValue:
        """The id of the current machine."""
        return self._bench.current


@cache
def _checked(function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """`function`, checking its arguments; made when it is first called, once for all runs."""
    return validate_call(function)


def _absolute(path: str) -> str:
    """A path as commands on that machine take it, which start in its working directory."""
    return posixpath.join(WORKSPACE, path)


async def run_cell(
    bench: Workbench,
    code: str,
    *,
    timeout: float,
    machine_id: str | None = None,
    on_output: Callable[[str], None] | None = None,
) -> tuple[CellResult, Sequence[str]]:
    """Run one cell in a machine's kernel, outside of any run; see `Kernel.run`.

    In the cell, the machine functions act on its own machine until it switches to another.

    Returns:
        What became of the cell, and whole sentences on what else the caller should know.

    Raises:
        KernelBusy: Another cell, or a run, is using it.
    """
    machine = await bench.machine(machine_id)
    if machine.id != bench.current:
        bench = bench.at(machine.id)
    calls = MachineCalls(bench)
    with bench.using_kernel(machine.id):
        kernel = bench.home = await bench.kernel(machine.id)
        await kernel.set_current(machine.id)
        result = await kernel.run(code, timeout=timeout, handler=calls, on_output=on_output)
    return result, (*lost_variables(result), *calls.take_notes())


def not_carried(carried: Carried | None, where: str = "the copy") -> Sequence[str]:
    """What to say of variables that a copy of a machine does not have."""
    if carried is None or not carried.lost:
        return ()
    named = _listed([f"{name} ({reason})" for name, reason in carried.lost.items()], "; ")
    return (f"A kernel started in {where} will not have these variables: {named}.",)


def lost_variables(result: CellResult) -> Sequence[str]:
    """What to say of variables that are gone because the kernel had to be started anew."""
    if not result.lost:
        return ()
    return (f"These variables are lost: {_listed(result.lost, ', ')}. Files are still there.",)


def _listed(items: Sequence[str], between: str) -> str:
    """The first of them, and how many more there are."""
    more = len(items) - MAX_LISTED
    return between.join([*items[:MAX_LISTED], *([f"and {more} more"] if more > 0 else ())])
