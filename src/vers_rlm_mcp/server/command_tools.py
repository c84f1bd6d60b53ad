# ruff: noqa: D101, N803, PLC0415 - the fields of an answer are explained by its tool; a tool's
# parameters are named as the client sends them; the rooms below are imported by the first call
"""Tools that work in a machine: commands, Python and files.

Every tool takes an optional `vmId`. A stdio server has one client, and so a current machine, made
when it is first needed. Over HTTP there may be many clients and no connection to tell them apart,
and with --read-only nothing may be made: there each call names its machine.
"""

import base64
import binascii
import codecs
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

from mcp.server.mcpserver import Context
from pydantic import Field

from vers_rlm_mcp.errors import InputError

from .application import application
from .progress import Progress
from .schemas import IN_WORDS
from .toolset import READS, REPLACES, RUNS_CODE, TEXT_LIMIT, Answer, Toolset, shorten

if TYPE_CHECKING:
    from vers_rlm_mcp.machines import CommandResult

OUTPUT_BYTES = 24_000
"""Bytes of each output stream in an answer: both are some 12,000 tokens, half of what clients show
before they truncate."""

READ_BYTES = 32_768
"""Bytes of a file in an answer, unless asked for otherwise: some 8,000 tokens."""

READ_MAX = 262_144
"""Most bytes of a file in one answer: more than clients show anyway."""

URL_SAFE = str.maketrans("-_", "+/")

PROGRESS_CHARS = 500
"""Characters of a cell's output in a progress message."""

TOOLS = Toolset()

VmId = Annotated[str | None, Field(description="Default: current VM")]


class CommandFields(TypedDict):
    vm_id: str
    stdout: str
    stderr: str
    exit_code: int | None
    signal: int | None
    timed_out: bool
    omitted_bytes: int
    seconds: float


@TOOLS.tool("exec", "Run a command", RUNS_CODE, {"command": "ls -l /workspace"})
async def run_command(
    context: Context,
    command: str,
    vmId: VmId = None,
    timeout: Annotated[
        float | None,
        Field(gt=0, le=86_400, description="Seconds. Default 120, max 86400"),
        IN_WORDS,
    ] = None,
    cwd: Annotated[str | None, Field(description="Default /workspace")] = None,
) -> Answer[CommandFields]:
    """Run a shell command in a sandboxed Linux VM that can be snapshotted and branched.

    Files and processes persist between calls. Long output keeps head and tail.
    """
    bench, machine_id = await application(context).target(vmId)
    async with Progress(context.report_progress, "The command"):
        result = await bench.exec(
            command, machine_id=machine_id, timeout=timeout, cwd=cwd, limit=OUTPUT_BYTES
        )
    fields: CommandFields = {
        "vm_id": machine_id,
        "stdout": result.stdout.text,
        "stderr": result.stderr.text,
        "exit_code": result.status.code if result.status else None,
        "signal": result.status.signal if result.status else None,
        "timed_out": result.status is None,
        "omitted_bytes": result.stdout.omitted + result.stderr.omitted,
        "seconds": round(result.seconds, 3),
    }
    return Answer(fields, _text([fields["stdout"], fields["stderr"], *_remarks(result)]))


def _text(parts: list[str]) -> str:
    """Outputs and remarks, each on separate lines."""
    return "\n".join(text for part in parts if (text := part.rstrip("\n"))) or "(no output)"


def _remarks(result: "CommandResult") -> list[str]:
    remarks: list[str] = []
    if result.stdout.omitted or result.stderr.omitted:
        remarks.append(
            "[output was cut; send it to a file and read that with readFile to see all of it]"
        )
    if result.status is None:
        remarks.append(f"[killed: it took longer than its time-out, {result.seconds:.0f} s]")
    elif result.status.code:
        remarks.append(f"[exit code: {result.status.code}]")
    elif result.status.signal:
        remarks.append(f"[killed by signal {result.status.signal}]")
    return remarks


class CellFields(TypedDict):
    vm_id: str
    status: str
    output: str
    error: str | None
    final: Any
    notes: list[str]
    seconds: float


@TOOLS.tool("python", "Run Python", RUNS_CODE, {"code": "print(6 * 7)"})
async def run_python(
    context: Context,
    code: str,
    vmId: VmId = None,
    timeout: Annotated[
        float | None,
        Field(gt=0, le=86_400, description="Seconds. Default 300, max 86400"),
        IN_WORDS,
    ] = None,
) -> Answer[CellFields]:
    """Run a Python cell in the VM's persistent REPL, whose variables survive between calls.

    The last expression is echoed; exec, readFile, writeFile and vm* are functions in it.
    """
    from vers_rlm_mcp.runs import run_cell

    app = application(context)
    bench, machine_id = await app.target(vmId)
    async with Progress(context.report_progress, "The cell") as progress:
        result, notes = await run_cell(
            bench,
            code,
            timeout=timeout or app.settings.cell_timeout,
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
        "output": shorten(result.output, TEXT_LIMIT),
        "error": shorten(result.error, TEXT_LIMIT) if result.error else None,
        "final": final,
        "notes": list(notes),
        "seconds": round(result.seconds, 3),
    }
    parts = [fields["output"], fields["error"] or ""]
    if result.status not in ("ok", "error"):
        parts.append(f"[{result.status} after {result.seconds:.1f} s]")
    if final is not None:
        parts.append(f"FINAL: {final}")
    parts += [f"[{note}]" for note in notes]
    return Answer(fields, _text(parts))


class FileFields(TypedDict):
    path: str
    content: str
    encoding: str
    offset: int
    length: int
    next_offset: int | None


@TOOLS.tool("readFile", "Read a file", READS, {"path": "/workspace/notes.txt"})
async def read_file(
    context: Context,
    path: str,
    vmId: VmId = None,
    offset: Annotated[int, Field(description="Byte; negative: from the end. Default 0")] = 0,
    length: Annotated[
        int, Field(ge=1, le=READ_MAX, description="Bytes. Default 32768, max 262144"), IN_WORDS
    ] = READ_BYTES,
) -> Answer[FileFields]:
    """Read a file in the VM, a page at a time; binary comes as base64."""
    bench, machine_id = await application(context).target(vmId)
    data = await bench.read_file(path, machine_id=machine_id, offset=offset, length=length + 1)
    return page_of(path, data, offset, length)


def page_of(path: str, data: bytes, offset: int, length: int) -> Answer[FileFields]:
    """One page of a file, from `data`, which holds a byte more than the page if there is more.

    A character that the page's end would split is left to the next page.
    """
    page = data[:length]
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(page, final=len(data) <= length)
    except UnicodeDecodeError:
        text = ""
    is_text = bool(text or not page)
    taken = len(text.encode()) if is_text else len(page)
    following = offset + taken
    fields: FileFields = {
        "path": path,
        "content": text if is_text else base64.b64encode(page).decode(),
        "encoding": "utf-8" if is_text else "base64",
        "offset": offset,
        "length": taken,
        "next_offset": following if taken < len(data) and following != 0 else None,
    }
    lines = [fields["content"]]
    if not is_text:
        lines.append("[not UTF-8: this is base64]")
    if fields["next_offset"] is not None:
        lines.append(f"[there is more; go on with offset {following}]")
    return Answer(fields, "\n".join(lines) if fields["content"] else "(empty)")


class WrittenFields(TypedDict):
    path: str
    size: int


@TOOLS.tool(
    "writeFile", "Write a file", REPLACES, {"path": "/workspace/notes.txt", "content": "Hello"}
)
async def write_file(
    context: Context,
    path: str,
    content: str,
    vmId: VmId = None,
    encoding: Literal["utf-8", "base64"] = "utf-8",
) -> Answer[WrittenFields]:
    """Write a file in the VM, replacing it if it exists; directories are made."""
    bench, machine_id = await application(context).target(vmId)
    size = await bench.write_file(path, _decode(content, encoding), machine_id=machine_id)
    return Answer({"path": path, "size": size}, f"Wrote {size:,} bytes to {path}")


def _decode(content: str, encoding: Literal["utf-8", "base64"]) -> bytes:
    if encoding == "utf-8":
        return content.encode("utf-8", "surrogateescape")
    # Also in lines, for URLs, and without padding.
    plain = "".join(content.split()).rstrip("=").translate(URL_SAFE)
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"The content is not base64: {error}. Nothing was written.") from error
