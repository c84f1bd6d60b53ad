# ruff: noqa: N803 - parameters are named as in the URIs
"""Runs in full, and files of machines, as resources; what is long comes page by page."""

from functools import wraps
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar
from urllib.parse import quote

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ResourceNotFoundError

from vers_rlm_mcp.errors import UnknownHandle, VersRlmError

from .application import application
from .command_tools import READ_MAX
from .run_answers import URI, as_text, step_fields

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container

    from mcp.server.mcpserver import MCPServer

    from vers_rlm_mcp.rlm import Step

P = ParamSpec("P")
T = TypeVar("T")

PAGE_CHARS: Final = 60_000
"""Characters of a long text in one page: clients pass on as much."""

PAGE_STEPS: Final = 50


def add_resources(server: "MCPServer[Any]", tools: "Container[str]") -> None:
    """Offer the resources that go with these tools."""
    json, table = "application/json", list[tuple[str, str, str, Any, str]]()
    if "rlmResult" in tools:
        run = URI.format("{runId}")
        table += [
            (f"{run}{{?cursor}}", "run", "A run and its steps", read_run, json),
            (f"{run}/steps/{{step}}{{?offset}}", "step", "A whole step", read_step, json),
            (f"{run}/outputs/{{name}}{{?offset}}", "output", "An output", read_output, json),
        ]
    if "readFile" in tools:
        uri = "vm://{vmId}/files/{+path}{?offset}"
        table.append((uri, "file", "A file in a VM", read_file, "application/octet-stream"))
    for uri, name, title, read, mime_type in table:
        server.resource(uri, name=name, title=title, mime_type=mime_type)(read)


def _with_protocol_errors(
    read: "Callable[P, Awaitable[T]]",
) -> "Callable[P, Awaitable[T]]":
    """Turn an error of this project into the protocol's for a resource that is not there."""

    @wraps(read)
    async def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await read(*args, **kwargs)
        except VersRlmError as error:
            raise ResourceNotFoundError(str(error)) from error

    return checked


@_with_protocol_errors
async def read_run(context: Context, runId: str, cursor: int = 0) -> dict[str, Any]:
    """A vers_rlm run: state, outputs, and 50 steps after `cursor`, each cut to length."""
    run = await application(context).load_run(runId)
    uri, outputs = URI.format(runId), run.result.outputs if run.result else ()
    page = run.steps[cursor : cursor + PAGE_STEPS]
    more = cursor + len(page) < len(run.steps)
    return {
        "run_id": runId,
        "status": run.summary.state,
        "signature": run.summary.signature,
        "reason": run.summary.reason,
        "outputs": [f"{uri}/outputs/{quote(name)}" for name in outputs],
        "steps": [{"uri": f"{uri}/steps/{step.number}", **step_fields(step)} for step in page],
        "next": f"{uri}?cursor={cursor + len(page)}" if more else None,
    }


@_with_protocol_errors
async def read_step(context: Context, runId: str, step: int, offset: int = 0) -> dict[str, Any]:
    """All of a step: reasoning, code and output, 60,000 characters from `offset`."""
    run = await application(context).load_run(runId)
    found = next((each for each in run.steps if each.number == step), None)
    if found is None:
        raise UnknownHandle(f"{runId} has no step {step}; it has {len(run.steps)}.")
    return _page(_markdown(found), offset, f"{URI.format(runId)}/steps/{step}")


@_with_protocol_errors
async def read_output(context: Context, runId: str, name: str, offset: int = 0) -> dict[str, Any]:
    """An output of a run, as text or JSON, 60,000 characters from `offset`."""
    run = await application(context).load_run(runId)
    outputs = dict(run.result.outputs) if run.result else {}
    if name not in outputs:
        known = ", ".join(outputs) or "none"
        raise UnknownHandle(f"{runId} has no output {name!r}; there is: {known}.")
    return _page(as_text(outputs[name]), offset, f"{URI.format(runId)}/outputs/{quote(name)}")


@_with_protocol_errors
async def read_file(context: Context, vmId: str, path: str, offset: int = 0) -> str | bytes:
    """A file in a VM, by its path without the first slash: 256 KiB from `offset`."""
    bench = await application(context).workbench()
    data = await bench.read_file(f"/{path}", machine_id=vmId, offset=offset, length=READ_MAX)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _markdown(step: "Step") -> str:
    parts = {
        "Reasoning": step.reasoning,
        "Code": step.code,
        "Output": step.output,
        "Error": step.error,
    }
    return "\n\n".join(f"## {title}\n{text}" for title, text in parts.items() if text)


def _page(text: str, offset: int, uri: str) -> dict[str, Any]:
    end = offset + PAGE_CHARS
    return {
        "text": text[offset:end],
        "chars": len(text),
        "next": f"{uri}?offset={end}" if end < len(text) else None,
    }
