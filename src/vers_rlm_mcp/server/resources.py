# ruff: noqa: N803 - parameters are named as in the URIs
"""Runs in full, and files of machines, as resources; what is long comes page by page."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar
from urllib.parse import quote

from mcp.server.mcpserver.exceptions import ResourceNotFoundError

from vers_rlm_mcp.errors import UnknownHandle, VersRlmError

from .machine_tools import READ_MAX
from .run_answers import URI, preview, shown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container

    from mcp.server.mcpserver import MCPServer

    from vers_rlm_mcp.rlm import Step

    from .application import Application
    from .detached import DetachedRuns

P = ParamSpec("P")
T = TypeVar("T")

PAGE_CHARS: Final = 60_000
"""Of a long text: clients pass on as much."""

PAGE_STEPS: Final = 50


def _found(read: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """Let a reader of this server hear an error of this project as one of the protocol."""

    @wraps(read)
    async def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await read(*args, **kwargs)
        except VersRlmError as error:
            raise ResourceNotFoundError(str(error)) from error

    return checked


class Resources:
    """What can be read of an application.

    Args:
        app: Where machines are.
        runs: Where runs are found.
    """

    def __init__(self, app: Application, runs: DetachedRuns) -> None:
        self._app = app
        self._runs = runs

    def mount(self, server: MCPServer[Any], tools: Container[str]) -> None:
        """Offer what goes with the tools that are offered."""
        json, table = "application/json", list[tuple[str, str, str, Any, str]]()
        if "rlmResult" in tools:
            run = URI.format("{runId}")
            table += [
                (f"{run}{{?cursor}}", "run", "A run and its steps", self.run, json),
                (f"{run}/steps/{{step}}{{?offset}}", "step", "A whole step", self.step, json),
                (f"{run}/outputs/{{name}}{{?offset}}", "output", "An output", self.output, json),
            ]
        if "readFile" in tools:
            uri = "vm://{vmId}/files/{+path}{?offset}"
            table.append((uri, "file", "A file in a VM", self.file, "application/octet-stream"))
        for uri, name, title, read, mime_type in table:
            server.resource(uri, name=name, title=title, mime_type=mime_type)(_found(read))

    async def run(self, runId: str, cursor: int = 0) -> dict[str, Any]:
        """A vers_rlm run: state, outputs, and 50 steps after `cursor`, each cut to length."""
        run = await self._runs.recorded(runId)
        uri, outputs = URI.format(runId), run.result.outputs if run.result else ()
        page = run.steps[cursor : cursor + PAGE_STEPS]
        more = cursor + len(page) < len(run.steps)
        return {
            "run_id": runId,
            "status": run.summary.state,
            "signature": run.summary.signature,
            "reason": run.summary.reason,
            "outputs": [f"{uri}/outputs/{quote(name)}" for name in outputs],
            "steps": [
                {"uri": f"{uri}/steps/{step.number}", **preview(step).model_dump()} for step in page
            ],
            "next": f"{uri}?cursor={cursor + len(page)}" if more else None,
        }

    async def step(self, runId: str, step: int, offset: int = 0) -> dict[str, Any]:
        """All of a step: reasoning, code and output, 60,000 characters from `offset`."""
        run = await self._runs.recorded(runId)
        found = next((each for each in run.steps if each.number == step), None)
        if found is None:
            raise UnknownHandle(f"{runId} has no step {step}; it has {len(run.steps)}.")
        return _page(_whole(found), offset, f"{URI.format(runId)}/steps/{step}")

    async def output(self, runId: str, name: str, offset: int = 0) -> dict[str, Any]:
        """An output of a run, as text or JSON, 60,000 characters from `offset`."""
        run = await self._runs.recorded(runId)
        outputs = dict(run.result.outputs) if run.result else {}
        if name not in outputs:
            there = ", ".join(outputs) or "none"
            raise UnknownHandle(f"{runId} has no output {name!r}; there is: {there}.")
        return _page(shown(outputs[name]), offset, f"{URI.format(runId)}/outputs/{quote(name)}")

    async def file(self, vmId: str, path: str, offset: int = 0) -> str | bytes:
        """A file in a VM, by its path without the first slash: 256 KiB from `offset`."""
        bench = await self._app.workbench()
        data = await bench.read_file(f"/{path}", machine_id=vmId, offset=offset, length=READ_MAX)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return data


def _whole(step: Step) -> str:
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
