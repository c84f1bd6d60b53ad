"""What a user of the product has: a server process, a client, a script that plays the model."""

from __future__ import annotations

import json
import os
import sys
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp_types import CallToolResult, TextContent

import user_data

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

COMMAND = str(Path(sys.executable).with_name("vers-rlm-mcp"))

POLL_SECONDS = 0.02
CALL_SECONDS = 60
"""Far more than any call of these tests takes, on a busy machine too."""

CGROUPS = Path("/sys/fs/cgroup")


@dataclass
class Running:
    """A call under way."""

    _done: anyio.Event
    _results: list[CallToolResult]
    cancel: Callable[[], None]

    async def result(self) -> CallToolResult:
        with anyio.fail_after(CALL_SECONDS):
            await self._done.wait()
        return self._results[0]


class User:
    """Works with one server process over stdio; `home` holds all that the two have."""

    def __init__(self, home: Path, client: Client, pid: int) -> None:
        self.home = home
        self.client = client
        self.pid = pid

    @property
    def state(self) -> Path:
        return self.home / "state"

    @property
    def allowed(self) -> Path:
        return self.home / "allowed"

    def log(self) -> str:
        return (self.home / "log").read_text()

    def write_script(self, *replies: str) -> None:
        """What the model says in the runs that start from now on. A reply is code, or begins
        with ``--- reply``."""
        whole = [item if item.startswith("--- reply") else cell(item) for item in replies]
        (self.home / "script").write_text("".join(f"{item}\n" for item in whole))

    async def tool(self, name: str, /, **arguments: Any) -> CallToolResult:
        with anyio.fail_after(CALL_SECONDS):
            return await self.client.call_tool(name, arguments)

    async def call(self, name: str, /, **arguments: Any) -> dict[str, Any]:
        """The structured content of a call that must succeed."""
        return fields_of(await self.tool(name, **arguments))

    async def error(self, name: str, /, **arguments: Any) -> str:
        """The text of a call that must fail."""
        result = await self.tool(name, **arguments)
        assert result.is_error, text_of(result)
        return text_of(result)

    async def run(self, *replies: str, **arguments: Any) -> dict[str, Any]:
        """What comes of a run whose model says this."""
        self.write_script(*replies)
        return await self.call("vers_rlm", **{"signature": "-> answer: any", **arguments})

    def events(self, run_id: str, name: str) -> list[dict[str, Any]]:
        """What the journal of a run says of this kind."""
        journal = (self.state / "runs" / run_id / "events.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, journal) if event["event"] == name]

    async def exec(self, command: str, **arguments: Any) -> str:
        """The standard output of a command that must succeed."""
        fields = await self.call("exec", command=command, **arguments)
        assert fields["exit_code"] == 0, fields
        return fields["stdout"]

    @asynccontextmanager
    async def machine(self, **size: int) -> AsyncGenerator[str]:
        """A machine, which is the current one, for a while."""
        vm_id = (await self.call("vmCreate", vmConfig=size))["vm_id"]
        try:
            yield vm_id
        finally:
            await self.call("vmDelete", vmId=vm_id)

    async def vm_ids(self) -> list[str]:
        return [vm["id"] for vm in (await self.call("vmList"))["vms"]]

    @asynccontextmanager
    async def running(self, name: str, /, until: str, **arguments: Any) -> AsyncGenerator[Running]:
        """A call that goes on meanwhile; `until` is in a progress message when this begins."""
        begun, done = anyio.Event(), anyio.Event()
        results: list[CallToolResult] = []
        scope = anyio.CancelScope()

        async def listen(progress: float, total: float | None, message: str | None) -> None:
            if until in (message or ""):
                begun.set()

        async def call() -> None:
            with scope:
                tool = partial(self.client.call_tool, name, arguments, progress_callback=listen)
                with suppress(MCPError):  # The server ended first.
                    results.append(await tool())
            begun.set()
            done.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            with anyio.fail_after(CALL_SECONDS):
                await begun.wait()
            yield Running(done, results, scope.cancel)
            tasks.cancel_scope.cancel()


@asynccontextmanager
async def user(home: Path, **variables: str) -> AsyncGenerator[User]:
    """Starts a server with these variables, and ends it."""
    (home / "allowed").mkdir(exist_ok=True)
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "XDG_DATA_HOME": str(user_data.DIRECTORY),
        "VERS_RLM_STATE_DIR": str(home / "state"),
        "VERS_RLM_ALLOW_DIR": str(home / "allowed"),
        "VERS_RLM_MODEL": f"scripted:{home / 'script'}",
        **variables,
    }
    mark = uuid4().hex
    server = StdioServerParameters(command=COMMAND, env=env | {"MARK": mark})
    with (home / "log").open("a") as log:
        async with Client(stdio_client(server, errlog=log), mode="legacy") as client:
            (pid,) = [child for child in children(os.getpid()) if mark in _environment(child)]
            yield User(home, client, pid)


def text_of(result: CallToolResult) -> str:
    content = result.content[0]  # links may follow
    assert isinstance(content, TextContent)
    return content.text


def fields_of(result: CallToolResult) -> dict[str, Any]:
    assert not result.is_error, text_of(result)
    assert result.structured_content is not None
    return result.structured_content


def cell(code: str, reasoning: str = "Let me see.") -> str:
    return f"--- reply\n{reasoning}\n```python\n{code}\n```"


async def eventually(condition: Callable[[], bool], within: float) -> None:
    with anyio.fail_after(within):
        while not condition():  # noqa: ASYNC110 - it is another process that changes it
            await anyio.sleep(POLL_SECONDS)


def children(pid: int) -> list[int]:
    """The processes that a process has started, in any of its threads, and not waited for."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, path.read_text().split())
    return found


def _environment(pid: int) -> str:
    """Its environment; empty once it has ended."""
    try:
        return Path(f"/proc/{pid}/environ").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def high_water(pid: int) -> int:
    """MiB of memory that a process has held at most."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024


def traces(home: Path, vm_ids: Sequence[str] = (), besides: int = 0) -> list[str]:
    """What a server, or several, left on this host: directories, processes, cgroups, mounts.

    `besides` is a process that may still be there.
    """
    machines = home / "state" / "bubblewrap" / "machines"
    names = [vm_id.partition("-")[2] for vm_id in vm_ids]
    # Not a glob: cgroups of others come and go meanwhile, which stops it.
    groups = [directory for directory, _, _ in os.walk(CGROUPS) if "/vers-rlm-" in directory]
    mounts = Path("/proc/mounts").read_text().splitlines()
    return [
        *map(str, machines.glob("*")),
        *_processes(str(home), {os.getpid(), besides}),
        *(group for group in groups if any(name in group for name in names)),
        *(mount for mount in mounts if f"{home}/" in mount),
    ]


def _processes(home: str, besides: set[int]) -> list[str]:
    """Processes that name what is below a directory, or have it open."""
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) in besides:
            continue
        with suppress(OSError):
            command = (process / "cmdline").read_text(errors="replace").replace("\0", " ")
            files = [str(entry.readlink()) for entry in (process / "fd").iterdir()]
            if any(text.startswith(home) for text in (*files, *command.split())):
                found.append(f"{process.name} {command}")
    return found
