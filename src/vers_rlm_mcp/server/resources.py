# ruff: noqa: N803, PLC0415 - parameters are named as in the URIs; rooms are imported when needed
"""Runs in full, and files of machines, as resources; what is long comes page by page."""

import re
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar
from urllib.parse import quote

from anyio import to_thread
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ResourceNotFoundError
from mcp_types import Resource

from vers_rlm_mcp.errors import UnknownHandle, VersRlmError

from .application import application
from .bounds import dump, prefix, shorten
from .file_tools import decode_page
from .kept_answers import URI as ANSWER
from .known_clients import client_of
from .principals import caller
from .run_answers import URI, as_text, count, step_fields

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container, Sequence

    from mcp.server.mcpserver import MCPServer

    from vers_rlm_mcp.rlm import Step

    from .application import Application

P = ParamSpec("P")
T = TypeVar("T")

JSON: Final = "application/json"
BYTES: Final = "application/octet-stream"

SHARE: Final = 0.8
"""Of what a client shows, for the text of a page: some escape it once more."""

PAGE_STEPS: Final = 50

SIGNATURE_CHARS: Final = 200

NUMBER: Final = re.compile("-?[0-9]{1,15}")

LISTED_RUNS: Final = 10
"""The latest runs, which are listed with their outputs."""

LISTED_FILES: Final = 20
"""Files of a run that are listed; the run's own resource names them all."""


def add_resources(server: "MCPServer[Any]", tools: "Container[str]") -> None:
    """Offer the resources that go with these tools."""
    table = list[tuple[str, str, str, Any, str]]()
    if "rlmResult" in tools:
        run = URI.format("{runId}")
        table += [
            (f"{run}{{?cursor}}", "run", "A run and its steps", read_run, JSON),
            (f"{run}/steps/{{step}}{{?offset}}", "step", "A whole step", read_step, JSON),
            (f"{run}/outputs/{{name}}{{?offset}}", "output", "An output", read_output, JSON),
            (f"{run}/files/{{+name}}{{?offset}}", "run_file", "A file of a run", read_kept, BYTES),
        ]
    if "readFile" in tools:
        uri = "vm://{vmId}/files/{+path}{?offset}"
        table.append((uri, "file", "A file in a VM", read_file, BYTES))
    answer = ANSWER.format("{name}")
    table.append((f"{answer}{{?offset}}", "answer", "A long answer", read_answer, JSON))
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
async def read_run(context: Context, runId: str, cursor: str = "0") -> dict[str, Any]:
    """A vers_rlm run: state, outputs, and steps after `cursor`, each cut to length."""
    run = await application(context).load_run(runId)
    uri, outputs = URI.format(runId), run.result.outputs if run.result else ()
    page, left = list[dict[str, Any]](), _room(context)
    start = _start(cursor, len(run.steps))
    for step in run.steps[start:][:PAGE_STEPS]:
        fields = {"uri": f"{uri}/steps/{step.number}", **step_fields(step)}
        left -= len(dump(fields))
        if page and left < 0:
            break
        page.append(fields)
    end = start + len(page)
    return {
        "run_id": runId,
        "status": run.summary.state,
        "signature": shorten(run.summary.signature, SIGNATURE_CHARS),
        "reason": run.summary.reason,
        "outputs": [f"{uri}/outputs/{quote(name)}" for name in outputs],
        "files": [
            f"{uri}/files/{quote(each.name)}" for each in (run.result.files if run.result else ())
        ],
        "steps": page,
        "next": f"{uri}?cursor={end}" if end < len(run.steps) else None,
    }


@_with_protocol_errors
async def read_step(context: Context, runId: str, step: str, offset: str = "0") -> dict[str, Any]:
    """All of a step: reasoning, code and output, a page from character `offset`."""
    run = await application(context).load_run(runId)
    found = next((each for each in run.steps if str(each.number) == step), None)
    if found is None:
        raise UnknownHandle(f"{runId} has no step {step}; it has {len(run.steps)}.")
    return _page(context, _markdown(found), offset, f"{URI.format(runId)}/steps/{step}")


@_with_protocol_errors
async def read_output(context: Context, runId: str, name: str, offset: str = "0") -> dict[str, Any]:
    """An output of a run, as text or JSON, a page from character `offset`."""
    run = await application(context).load_run(runId)
    outputs = dict(run.result.outputs) if run.result else {}
    if name not in outputs:
        known = ", ".join(outputs) or "none"
        raise UnknownHandle(f"{runId} has no output {name!r}; there is: {known}.")
    uri = f"{URI.format(runId)}/outputs/{quote(name)}"
    return _page(context, as_text(outputs[name]), offset, uri)


@_with_protocol_errors
async def read_kept(context: Context, runId: str, name: str, offset: str = "0") -> str | bytes:
    """A file that a run handed over: a page from byte `offset`."""
    app = application(context)
    start, room = _number(offset), _room(context)
    path = await to_thread.run_sync(lambda: app.journals().of(runId).file(name))

    def read() -> bytes:
        with path.open("rb") as file:
            file.seek(start if start >= 0 else max(0, path.stat().st_size + start))
            return file.read(room + 1)

    data = await to_thread.run_sync(read)
    page = decode_page(data, start, room, room, from_end=start < 0)
    return page.content if page.encoding == "utf-8" else data[: page.length]


@_with_protocol_errors
async def read_file(context: Context, vmId: str, path: str, offset: str = "0") -> str | bytes:
    """A file in a VM, by its path without the first slash: a page from byte `offset`."""
    bench = await application(context).workbench()
    start, room = _number(offset), _room(context)
    data = await bench.read_file(f"/{path}", machine_id=vmId, offset=start, length=room + 1)
    page = decode_page(data, start, room, room, from_end=start < 0)
    if page.encoding == "utf-8":
        return page.content
    return data[: page.length]


@_with_protocol_errors
async def read_answer(context: Context, name: str, offset: str = "0") -> dict[str, Any]:
    """An answer that was cut, as text, a page from character `offset`."""
    text = application(context).kept_answers.find(caller(), name)
    return _page(context, text, offset, ANSWER.format(name))


async def list_runs(app: "Application") -> "Sequence[Resource]":
    """The latest runs and their outputs, newest first."""
    from vers_rlm_mcp.runs import load_record

    listed: list[Resource] = []
    for journal in (await to_thread.run_sync(app.journals().all))[: -LISTED_RUNS - 1 : -1]:
        try:
            run = await to_thread.run_sync(load_record, journal)
        except (VersRlmError, OSError):  # it was deleted in between
            continue
        uri, about = URI.format(journal.run_id), shorten(run.summary.signature, SIGNATURE_CHARS)
        steps = count(run.summary.steps, "step")
        listed.append(
            Resource(
                uri=uri,
                name=journal.run_id,
                title=f"Run: {about}",
                description=f"{run.summary.state}, {steps}",
                mime_type=JSON,
            )
        )
        listed += [
            Resource(
                uri=f"{uri}/outputs/{quote(name)}",
                name=f"{journal.run_id}/{name}",
                title=f"Output {name}: {about}",
                mime_type=JSON,
            )
            for name in (run.result.outputs if run.result else ())
        ]
        listed += [
            Resource(
                uri=f"{uri}/files/{quote(each.name)}",
                name=f"{journal.run_id}/files/{each.name}",
                title=f"File {each.name}: {about}",
                size=each.size,
            )
            for each in (run.result.files[:LISTED_FILES] if run.result else ())
        ]
    return listed


def _markdown(step: "Step") -> str:
    parts = {
        "Reasoning": step.reasoning,
        "Code": step.code,
        "Output": step.output,
        "Error": step.error,
    }
    return "\n\n".join(f"## {title}\n{text}" for title, text in parts.items() if text)


def _room(context: Context) -> int:
    """The characters of a page."""
    return int(client_of(context).room * SHARE)


def _number(text: str) -> int:
    if NUMBER.fullmatch(text):
        return int(text)
    raise UnknownHandle(f"{text!r} is not a whole number that an offset or a cursor can be.")


def _start(text: str, size: int) -> int:
    """Where a page starts; a negative number counts from the end."""
    number = _number(text)
    return min(number, size) if number >= 0 else max(0, size + number)


def _page(context: Context, text: str, offset: str, uri: str) -> dict[str, Any]:
    start = _start(offset, len(text))
    page = prefix(text[start:], _room(context))
    end = start + len(page)
    return {
        "text": page,
        "chars": len(text),
        "next": f"{uri}?offset={end}" if end < len(text) else None,
    }
