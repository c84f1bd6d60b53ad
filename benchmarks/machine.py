"""What a bubblewrap machine costs, fresh and after 1 GB was written in it; and a run in one.

The run's model is scripted, in the same process: what an engine's iteration costs beside HTTP.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, TypeVar

import anyio

from vers_rlm_mcp import rlm, runs
from vers_rlm_mcp.machines import open_fleet, run_command
from vers_rlm_mcp.models import open_model
from vers_rlm_mcp.runs import events
from vers_rlm_mcp.settings import Settings

from .scenarios import PRINT_500, TURNS
from .tables import Section, computer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from pydantic import JsonValue

    from vers_rlm_mcp.kernel import HostCall, Kernel
    from vers_rlm_mcp.machines import Fleet

ROUNDS = 5
FRESH, WRITTEN = "new machine", "after 1 GB was written"
WRITE_1_GB = ["dd", "if=/dev/zero", "of=/workspace/big", "bs=1M", "count=1024", "status=none"]
COMMAND_SECONDS = 120
CELL_SECONDS = 30
MANY = 16

NOTES = [
    "bubblewrap, with the ledger in front of it; the state directory on this computer's disk.",
    "A snapshot saves the kernel's variables first; branches and restored machines are ready when "
    "a kernel with these variables runs in each.",
    "The run's model is scripted, in the same process: its iterations are without HTTP.",
]

T = TypeVar("T")


async def measure(*, rounds: int | None = None) -> Section:
    """Make machines, work in them, copy them; each round with its own machines."""
    section = Section("Machine", [FRESH, WRITTEN], computer(), notes=[*NOTES])
    with tempfile.TemporaryDirectory(prefix="vers-rlm-bench-") as directory:
        settings = Settings.model_validate(
            {"backend": "bubblewrap", "state_dir": directory, "max_machines": 2 * MANY}
        )
        async with open_fleet(settings) as fleet:
            warm_up = Section("", [FRESH], "")
            await _Round(warm_up, FRESH, fleet, settings).perform()
            first = warm_up.cell("create", "ms", FRESH)
            section.cell(
                "create, the first with a new state directory", "ms", FRESH
            ).values += first.values
            for _ in range(rounds or ROUNDS):
                await _iterate(section, fleet, settings)
                for column in section.columns:
                    await _Round(section, column, fleet, settings).perform()
    return section


async def _iterate(section: Section, fleet: Fleet, settings: Settings) -> None:
    """A run of many steps: an iteration is the time from a question to the next."""
    asked: list[float] = []

    def on_event(event: rlm.Event) -> None:
        if isinstance(event, events.ModelAsked):
            asked.append(time.perf_counter())

    script = settings.state_dir / "script.txt"
    step = f"--- reply\n```python\n{PRINT_500}\n```\n"
    script.write_text(f'{step * TURNS}--- reply\n```python\nFINAL(answer="done")\n```\n')
    model = open_model(f"scripted:{script}")
    request = runs.RunRequest("-> answer", max_iterations=TURNS + 1)
    result = await runs.run(
        request, fleet=fleet, model=model, sub_model=model, settings=settings, on_event=on_event
    )
    assert result.outputs == {"answer": "done"}, result
    seconds = [after - before for before, after in pairwise(asked)]
    for which, part in (("first", seconds[:10]), ("last", seconds[-10:])):
        what = f"an iteration of a run, the {which} ten of {TURNS}"
        section.cell(what, "ms", FRESH, goal=2).values.append(median(part) * 1000)


@dataclass
class _Round:
    section: Section
    column: str
    fleet: Fleet
    settings: Settings

    async def perform(self) -> None:
        bench = runs.Workbench(self.fleet, self.settings)
        machine = await self.time("create", bench.create())
        kernel = await self.time("start its kernel", bench.kernel())
        self.add_up("create, kernel included", ["create", "start its kernel"], goal=60)
        await self.time("first cell", _cell(kernel, "x = 1"))
        await self.time("next cell", _cell(kernel, "x += 1"))
        if self.column == WRITTEN:
            made = await bench.machine()
            await run_command(made, WRITE_1_GB, timeout=COMMAND_SECONDS)
        await self.time("exec `true`", self.exec(bench))
        made = await self.time("snapshot", bench.snapshot(), goal=80)
        await self.time("snapshot again", bench.snapshot())
        await self.time("branch", self.branch(bench, 1), goal=80)
        await self.time(f"{MANY} branches at once", self.branch(bench, MANY))
        await self.time("restore", self.restore(bench, made.commit.id))
        await self.time("delete", bench.delete(machine.id))
        await self.clean_up(bench)

    async def exec(self, bench: runs.Workbench) -> None:
        result = await bench.exec("true", limit=1)
        assert result.status
        assert result.status.ok

    async def branch(self, bench: runs.Workbench, count: int) -> None:
        branches = await bench.branch(count)
        await self.check(bench, branches.ids)

    async def restore(self, bench: runs.Workbench, commit: str) -> None:
        await self.check(bench, [(await bench.restore(commit)).id])

    async def check(self, bench: runs.Workbench, machines: Sequence[str]) -> None:
        """Start the kernels of copies, all at once; each must have the variables."""

        async def start(machine_id: str) -> None:
            await _cell(await bench.kernel(machine_id), "assert x == 2")

        async with anyio.create_task_group() as tasks:
            for machine_id in machines:
                tasks.start_soon(start, machine_id)

    async def clean_up(self, bench: runs.Workbench) -> None:
        machines, commits = await bench.list()
        for machine in machines:
            await bench.delete(machine.id)
        for commit in commits:
            await self.fleet.delete_commit(commit.id)
        await bench.aclose()

    async def time(self, what: str, act: Awaitable[T], goal: float | None = None) -> T:
        started = time.perf_counter()
        result = await act
        self.add(what, (time.perf_counter() - started) * 1000, goal)
        return result

    def add_up(self, what: str, parts: Sequence[str], goal: float) -> None:
        cells = (self.section.cell(part, "ms", self.column) for part in parts)
        self.add(what, sum(cell.values[-1] for cell in cells), goal)

    def add(self, what: str, value: float, goal: float | None) -> None:
        self.section.cell(what, "ms", self.column, goal).values.append(value)


async def _cell(kernel: Kernel, code: str) -> None:
    result = await kernel.run(code, timeout=CELL_SECONDS, handler=_refuse)
    assert result.status == "ok", result


async def _refuse(call: HostCall) -> JsonValue:
    raise AssertionError(call)
