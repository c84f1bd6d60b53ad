# ruff: noqa: D101, N803, PLC0415 - the fields of an answer are explained by its tool; a tool's
# parameters are named as the client sends them; the rooms below are imported by the first call
"""Tools that run commands and Python in machines.

A stdio server has one client, and so a current machine, made when it is first needed. Over HTTP
there may be many clients and no connection to tell them apart, and with --read-only nothing may be
made: there each call names its machine.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, cast

import anyio
from mcp.server.mcpserver import Context
from pydantic import Field

from vers_rlm_mcp.errors import InputError, VersRlmError
from vers_rlm_mcp.folding import fold

from .application import application
from .bounds import dump, fit_fields, largest
from .known_clients import client_of
from .progress import Progress
from .schemas import IN_WORDS
from .toolset import CURRENT, RUNS_CODE, Answer, Toolset, without_none

if TYPE_CHECKING:
    from vers_rlm_mcp.machines import Captured, CommandResult
    from vers_rlm_mcp.runs import Workbench

CAPTURED_BYTES = 64 * 1024
"""Bytes kept of each output stream: more than any client shows."""

OVERHEAD_CHARS = 500
"""Characters of an answer besides its outputs."""

MIN_ROOM = 1_000
"""Characters that each of several machines may answer, however many there are."""

MAX_VMS = 16
"""Machines in one call."""

PROGRESS_CHARS = 500
"""Characters of a cell's output in a progress message."""

NO_TEXT = dict.fromkeys([*range(8), *range(14, 27), *range(28, 32), 127], "\ufffd")
"""Control characters that texts do not contain: as JSON each takes six characters."""

TOOLS = Toolset()

VmId = Annotated[str | None, Field(description=CURRENT)]
VmIds = Annotated[
    list[str] | None, Field(max_length=MAX_VMS, description="Several VMs, at the same time")
]


@dataclass(frozen=True, slots=True)
class Room:
    """The size that an answer's fields may have as JSON, and its text."""

    size: int
    measure: Callable[[str], int]

    def share(self, count: int) -> "Room":
        """One of several equal shares."""
        return replace(self, size=max(MIN_ROOM, self.size // count))


class CommandFields(TypedDict):
    vm_id: str
    stdout: str
    stderr: str
    exit_code: int | None
    signal: int | None
    timed_out: bool
    omitted_bytes: int
    seconds: float


class CommandAnswer(CommandFields):
    results: list[dict[str, Any]]
    """In place of the others, the answers of several machines."""


@TOOLS.tool("exec", "Run a command", RUNS_CODE, {"command": "ls -l /workspace"})
async def run_command(
    context: Context,
    command: str,
    vmId: VmId = None,
    vmIds: VmIds = None,
    timeout: Annotated[
        float | None,
        Field(gt=0, le=86_400, description="Seconds. Default 120, max 86400"),
        IN_WORDS,
    ] = None,
    cwd: Annotated[str | None, Field(description="Default /workspace")] = None,
    env: Annotated[dict[str, Any] | None, Field(description="Variables to add")] = None,
    stdin: str | None = None,
) -> Answer[CommandAnswer]:
    """Run a shell command in a sandboxed Linux VM that can be snapshotted and branched.

    Files and background processes persist between calls; directory and variables do not. Long
    output keeps head and tail.
    """
    variables = _variables(env or {})
    seconds = timeout or application(context).settings.exec_timeout

    async def execute(bench: "Workbench", machine_id: str, room: Room) -> Answer[Any]:
        result = await bench.exec(
            command,
            machine_id=machine_id,
            timeout=seconds,
            cwd=cwd,
            env=variables,
            stdin=(stdin or "").encode("utf-8", "surrogateescape"),
            limit=CAPTURED_BYTES,
        )
        return _describe_command(machine_id, result, room)

    async with Progress(context.report_progress, "The command"):
        return await _in_each(context, vmId, vmIds, execute, seconds)


async def _in_each(
    context: Context,
    machine_id: str | None,
    machine_ids: Sequence[str] | None,
    act: Callable[["Workbench", str, Room], Awaitable[Answer[Any]]],
    timeout: float,
) -> Answer[Any]:
    """The answer of one machine, or the answers of several, side by side."""
    from vers_rlm_mcp.machines import expect_answer

    app = application(context)
    client = client_of(context)
    room = Room(client.room // 2 - OVERHEAD_CHARS, client.measure)
    named = [machine_id, *(machine_ids or ())] if machine_id or not machine_ids else machine_ids
    # None acts before it is known that all exist.
    with expect_answer(timeout):
        targets = [await app.target(each) for each in dict.fromkeys(named)]
    if not machine_ids:
        return await act(*targets[0], room)
    answers: dict[str, Answer[Any]] = {}

    async def answer(bench: "Workbench", each: str) -> None:
        try:
            answers[each] = await act(bench, each, room.share(len(targets)))
        except VersRlmError as error:
            answers[each] = Answer({"vm_id": each, "error": str(error)}, f"[failed: {error}]")

    async with anyio.create_task_group() as tasks:
        for bench, each in targets:
            tasks.start_soon(answer, bench, each)
    in_order = [answers[each] for _, each in targets]
    fields: Any = {"results": [without_none(each.fields) for each in in_order]}
    return Answer(fields, "\n\n".join(f"=== VM {it.fields['vm_id']}\n{it.text}" for it in in_order))


def _variables(given: Mapping[str, Any]) -> Mapping[str, str]:
    for name in given:
        if not name or "=" in name or "\0" in name:
            raise InputError(f"env: {name!r} is not the name of a variable.")
    return {name: it if isinstance(it, str) else dump(it) for name, it in given.items()}


def _describe_command(
    machine_id: str, result: "CommandResult", room: Room
) -> Answer[CommandFields]:
    streams = (result.stdout, result.stderr)
    longest = max(stream.total for stream in streams)
    shown = largest(
        min(longest, CAPTURED_BYTES),
        lambda limit: [_show(stream, limit) for stream in streams],
        lambda them: sum(room.measure(dump(text)) for text, _ in them) <= room.size,
    )
    (stdout, _), (stderr, _) = shown
    omitted = sum(missing for _, missing in shown)
    fields: CommandFields = {
        "vm_id": machine_id,
        "stdout": stdout,
        "stderr": stderr,
        "exit_code": result.status.code if result.status else None,
        "signal": result.status.signal if result.status else None,
        "timed_out": result.status is None,
        "omitted_bytes": omitted,
        "seconds": round(result.seconds, 3),
    }
    outputs = [fold(stdout), *(["[stderr]", fold(stderr)] if stderr else [])]
    parts = [*(outputs if stdout or stderr else ["(no output)"]), *_remarks(result, fields)]
    return Answer(fields, join_parts([*parts, f"[VM {machine_id}, {result.seconds:.1f} s]"]))


def _show(stream: "Captured", limit: int) -> tuple[str, int]:
    """Head and tail of an output as text, and how many bytes are left out."""
    data, half = stream.data, limit // 2
    if stream.total <= limit:
        return data.decode(errors="replace").translate(NO_TEXT), 0
    head = data[:half].decode(errors="replace").rstrip("\ufffd")
    tail = data[-half:].decode(errors="replace").lstrip("\ufffd") if half else ""
    missing = stream.total - 2 * half
    return f"{head}\n… {missing:,} bytes left out …\n{tail}".translate(NO_TEXT), missing


def _remarks(result: "CommandResult", fields: CommandFields) -> list[str]:
    remarks: list[str] = []
    if fields["omitted_bytes"]:
        remarks.append(
            "[output was cut; send it to a file and read that with readFile to see all of it]"
        )
    if b"\0" in result.stdout.data + result.stderr.data:
        remarks.append("[the output is binary; send it to a file and read that with readFile]")
    if result.status is None:
        remarks.append(
            f"[killed: it took longer than its time-out, {result.seconds:.3g} s; give a longer "
            "`timeout`, or run it in the background (`COMMAND > log 2>&1 &`) and read its log]"
        )
    elif result.status.code:
        remarks.append(f"[exit code: {result.status.code}]")
    elif result.status.signal:
        remarks.append(f"[killed by signal {result.status.signal}]")
    return remarks


def join_parts(parts: Sequence[str]) -> str:
    """Outputs and remarks, each on separate lines."""
    return "\n".join(text for part in parts if (text := part.rstrip("\n")))


class CellFields(TypedDict):
    vm_id: str
    status: str
    output: str
    error: str | None
    final: Any
    notes: list[str]
    seconds: float


class CellAnswer(CellFields):
    results: list[dict[str, Any]]


@TOOLS.tool("python", "Run Python", RUNS_CODE, {"code": "print(6 * 7)"})
async def run_python(
    context: Context,
    code: str,
    vmId: VmId = None,
    vmIds: VmIds = None,
    timeout: Annotated[
        float | None,
        Field(gt=0, le=86_400, description="Seconds. Default 300, max 86400"),
        IN_WORDS,
    ] = None,
) -> Answer[CellAnswer]:
    """Run a Python cell in the VM's persistent REPL, whose variables survive between calls.

    The last expression is echoed; exec, readFile, writeFile and vm* are functions in it. Cells of
    one VM run one after the other.
    """
    from vers_rlm_mcp.runs import run_cell

    app = application(context)
    seconds = timeout or app.settings.cell_timeout

    async def execute(bench: "Workbench", machine_id: str, room: Room) -> Answer[Any]:
        async with app.turn(machine_id):
            result, notes = await run_cell(
                bench,
                code,
                timeout=seconds,
                machine_id=machine_id,
                on_output=lambda text: progress.say(text[-PROGRESS_CHARS:], passing=True),
            )
        final = result.final and (
            result.final.kwargs
            or (result.final.args[0] if len(result.final.args) == 1 else result.final.args)
        )
        fields: CellFields = {
            "vm_id": machine_id,
            "status": result.status,
            "output": result.output.translate(NO_TEXT),
            "error": result.error.translate(NO_TEXT) if result.error else None,
            "final": final,
            "notes": list(notes),
            "seconds": round(result.seconds, 3),
        }
        return _fit_cell(fields, room)

    async with Progress(context.report_progress, "The cell") as progress:
        return await _in_each(context, vmId, vmIds, execute, seconds)


def _fit_cell(fields: CellFields, room: Room) -> Answer[CellFields]:
    """The answer about a cell, whose texts are cut to a size. `FINAL` values go last."""
    texts = {name: fields[name] or "" for name in ("output", "error")}
    if fields["final"] is not None:
        room = room.share(2)
    cut = fit_fields(texts, room.size, room.measure)
    shown = cast("CellFields", {**fields, **cut, "error": cut["error"] or None})
    parts = [fold(cut["output"]), fold(cut["error"])]
    if cut != texts:
        parts.append("[output was cut; print less, or write it to a file and use readFile]")
    if fields["status"] not in ("ok", "error"):
        parts.append(f"[{fields['status']} after {fields['seconds']:.1f} s]")
    if fields["final"] is not None:
        parts.append(f"FINAL: {dump(fields['final'])}")
    parts += [f"[{note}]" for note in fields["notes"]]
    parts.append(f"[VM {fields['vm_id']}, {fields['seconds']:.1f} s]")
    return Answer(shown, join_parts(parts))
