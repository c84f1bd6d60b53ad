"""What the machine, the kernel and the engine cost on this computer: `make bench`.

Prints a table in Markdown: the median of each figure with its minimum and maximum, in
milliseconds. Models are scripted and answer at once, so that only our own time is measured.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from mcp import Client, StdioServerParameters

from vers_rlm_mcp import runs
from vers_rlm_mcp.kernel import Kernel
from vers_rlm_mcp.machines import run_command
from vers_rlm_mcp.models import open_model
from vers_rlm_mcp.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vers_rlm_mcp.machines import Fleet, Machine

ROUNDS = 10
GIGABYTE = "dd if=/dev/zero of=/workspace/big bs=1M count=1024 status=none"

BARE_SERVER = """\
from mcp.server.mcpserver import MCPServer
server = MCPServer("bare")
@server.tool()
def nothing() -> str:
    return ""
server.run()
"""


class Table:
    def __init__(self) -> None:
        self.rows: dict[str, list[float]] = {}

    async def time(self, name: str, act: Callable[[], Awaitable[object]]) -> None:
        started = time.perf_counter()
        await act()
        self.rows.setdefault(name, []).append((time.perf_counter() - started) * 1000)

    def print(self) -> None:
        print(
            f"\n{platform.platform()}, {os.cpu_count()} processors, Python "
            f"{platform.python_version()}, as {'root' if os.geteuid() == 0 else 'a user'}\n"
        )
        print("| what | median ms | min | max | n |\n|---|---:|---:|---:|---:|")
        for name, times in self.rows.items():
            print(
                f"| {name} | {statistics.median(times):.1f} | {min(times):.1f} "
                f"| {max(times):.1f} | {len(times)} |"
            )


async def main() -> None:
    table = Table()
    with tempfile.TemporaryDirectory() as directory:
        state = Path(directory)
        settings = Settings(state_dir=state, max_machines=64)
        async with runs.open_fleet(settings) as fleet:
            await machines(fleet, table)
            await engine(fleet, table, settings)
        await server(table, state)
    table.print()


async def machines(fleet: Fleet, table: Table) -> None:
    made: list[Machine] = []
    kernels: list[Kernel] = []

    async def create() -> None:
        made.append(await fleet.create())

    async def connect() -> None:
        kernels.append(await Kernel.connect(made[-1], home_id=made[-1].id))

    for _ in range(ROUNDS):
        await table.time("create", create)
        await table.time("start its kernel", connect)
        await table.time("first cell", lambda: kernels[-1].run("1", timeout=10, handler=refuse))
        await table.time("next cell", lambda: kernels[-1].run("1", timeout=10, handler=refuse))
        await kernels[-1].aclose()
        await table.time("delete", lambda: fleet.delete(made[-1].id))
    machine = await fleet.create()
    await operations(fleet, table, machine, "")
    await run_command(machine, GIGABYTE, timeout=120)
    await operations(fleet, table, machine, ", 1 GB written")
    await fleet.delete(machine.id)


async def operations(fleet: Fleet, table: Table, made: Machine, when: str) -> None:
    async def branch(count: int) -> None:
        for copy in await fleet.branch(made, count):
            await fleet.delete(copy.id)

    commit = await fleet.snapshot(made)

    async def restore() -> None:
        await fleet.delete((await fleet.restore(commit.id)).id)

    for _ in range(ROUNDS):
        await table.time(f"exec true{when}", lambda: run_command(made, ["true"], timeout=10))
        await table.time(f"snapshot{when}", lambda: fleet.snapshot(made))
        await table.time(f"branch, delete{when}", lambda: branch(1))
        await table.time(f"restore, delete{when}", restore)
    for _ in range(3):
        await table.time(f"16 branches at once, delete{when}", lambda: branch(16))


async def engine(fleet: Fleet, table: Table, settings: Settings) -> None:
    steps = 100
    script = settings.state_dir / "script.txt"
    replies = ["--- reply\n```python\nx = 1\nx\n```\n"] * steps
    script.write_text("".join(replies) + "--- reply\n```python\nFINAL(answer=x)\n```\n")
    model = open_model(f"scripted:{script}")
    request = runs.RunRequest("-> answer: int", max_iterations=steps + 1)
    result = await runs.run(request, fleet=fleet, model=model, sub_model=model, settings=settings)
    assert result.outputs == {"answer": 1}, result
    short = await runs.run(
        runs.RunRequest("-> answer: int", max_iterations=1),
        fleet=fleet,
        model=model,
        sub_model=model,
        settings=settings,
    )
    table.rows["a run's fixed cost"] = [short.seconds * 1000]
    table.rows["an iteration, mean of 100"] = [(result.seconds - short.seconds) * 1000 / steps]


async def server(table: Table, state: Path) -> None:
    bare = state / "bare.py"
    bare.write_text(BARE_SERVER)
    environment = {**os.environ, "VERS_RLM_STATE_DIR": str(state / "server")}

    async def connect(*argv: str) -> None:
        parameters = StdioServerParameters(command=sys.executable, args=list(argv), env=environment)
        async with Client(parameters, mode="legacy"):
            connected.append(time.perf_counter())

    for _ in range(ROUNDS):
        for name, argv in (
            ("spawn to initialize", ("-m", "vers_rlm_mcp")),
            ("spawn to initialize, a bare server", (str(bare),)),
        ):
            connected: list[float] = []
            started = time.perf_counter()
            await connect(*argv)
            table.rows.setdefault(name, []).append((connected[0] - started) * 1000)


async def refuse(call: object) -> None:
    raise AssertionError(call)


anyio.run(main)
