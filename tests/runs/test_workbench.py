"""The workbench: a current machine, kernels that come back, and cells outside of runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

from vers_rlm_mcp.errors import KernelBusy, MachineGone, UnknownHandle
from vers_rlm_mcp.runs import Workbench, events, run_cell

if TYPE_CHECKING:
    from lab import Lab

WHERE = "import os; print(os.environ['MACHINE_ROOT'].split('/')[-2])"
"""Tells the id of the machine that a kernel is in."""


async def output(bench: Workbench, command: str, machine_id: str | None = None) -> str:
    return (await bench.exec(command, machine_id=machine_id, limit=1000)).stdout.text


async def test_the_first_use_makes_one_machine_however_many_ask_at_once(lab: Lab):
    bench = lab.bench()
    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(output, bench, "true")
    assert await lab.machines() == [bench.current]


async def test_variables_stay_from_cell_to_cell(lab: Lab):
    bench = lab.bench()
    await lab.cell(bench, "x = 1")
    assert await lab.cell(bench, "x + 1") == "2"


@pytest.mark.assumes("fake")
async def test_a_cell_on_a_named_machine_acts_on_that_machine(lab: Lab):
    bench = lab.bench()
    current, other = (await bench.create()).id, (await lab.fleet.create()).id
    assert await lab.cell(bench, WHERE, other) == other
    assert await lab.cell(bench, "print(currentVmId())", other) == other
    await lab.cell(bench, "exec('echo there > note')", other)
    assert await output(bench, "cat note", other) == "there\n"
    assert await lab.cell(bench, WHERE) == current == bench.current


@pytest.mark.assumes("fake")
async def test_a_cell_that_switches_on_a_named_machine_leaves_the_current_one_alone(lab: Lab):
    bench = lab.bench()
    current, other = (await bench.create()).id, (await lab.fleet.create()).id
    third = await lab.cell(bench, "third = vmBranch(); _ = vmSwitch(third); print(third)", other)
    assert bench.current == current
    assert await lab.cell(bench, WHERE, third) == third
    assert await lab.cell(bench, "print(currentVmId())", other) == other


@pytest.mark.assumes("fake")
async def test_a_cell_that_switches_on_the_current_machine_moves_it(lab: Lab):
    bench = lab.bench()
    await bench.create()
    branch = await lab.cell(bench, "branch = vmBranch(); _ = vmSwitch(branch); print(branch)")
    assert bench.current == branch
    assert await lab.cell(bench, WHERE) == branch
    assert await lab.cell(bench, "print(currentVmId())") == branch


async def test_a_second_cell_is_told_that_the_kernel_is_busy_and_the_first_continues(lab: Lab):
    bench = lab.bench()
    machine = (await bench.create()).id
    started = anyio.Event()
    code = (
        "_ = vmSwitch(vmBranch()); print('started', flush=True)\nwhile not exec('ls go').stdout: 0"
    )
    seen: list[str] = []

    async def first() -> None:
        result, _ = await run_cell(
            bench.at(machine), code, timeout=20, on_output=lambda _: started.set()
        )
        seen.append(result.status)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(first)
        await started.wait()
        with pytest.raises(KernelBusy, match=machine):
            await lab.cell(bench, "1")
        # The first cell's commands still act where it has switched to.
        (branch,) = set(await lab.machines()) - {machine}
        await output(bench, "touch go", branch)
    assert seen == ["ok"]


@pytest.mark.assumes("disk")
async def test_a_snapshot_while_a_cell_runs_says_that_variables_were_not_saved(lab: Lab):
    bench = lab.bench()
    await bench.create()
    started = anyio.Event()
    async with anyio.create_task_group() as tasks:

        async def sleep() -> None:
            code = "print(1, flush=True); import time; time.sleep(600)"
            await run_cell(bench, code, timeout=600, on_output=lambda _: started.set())

        tasks.start_soon(sleep)
        await started.wait()
        carried = (await bench.snapshot()).carried
        assert carried
        assert "not saved" in carried.lost["all variables"]
        tasks.cancel_scope.cancel()


async def test_copies_have_the_variables(lab: Lab):
    bench = lab.bench()
    await bench.create()
    await lab.cell(bench, "x = [1, 2]")
    commit = (await bench.snapshot()).commit
    (branch,) = (await bench.branch()).ids
    await lab.cell(bench, "x.append(3)")
    assert await lab.cell(bench, "x", branch) == "[1, 2]"
    await bench.restore(commit.id)
    assert await lab.cell(bench, "x") == "[1, 2]"


async def test_a_machine_deleted_by_another_is_gone_and_the_next_is_made_afresh(lab: Lab):
    bench = lab.bench()
    machine = (await bench.create()).id
    await lab.cell(bench, "x = 1")
    await lab.fleet.delete(machine)
    with pytest.raises(MachineGone):
        await output(bench, "true")
    await bench.delete(machine)
    assert await lab.cell(bench, "'x' in globals()") == "False"
    with pytest.raises(UnknownHandle):
        await bench.switch(machine)


async def test_deleting_the_current_machine_leaves_none(lab: Lab):
    bench = lab.bench()
    machine = (await bench.create()).id
    await bench.delete(machine)
    assert bench.current is None
    assert await lab.machines() == []


async def test_what_is_done_is_told(lab: Lab):
    bench = Workbench(lab.fleet, lab.settings, on_event=lab.events.append)
    first = (await bench.create()).id
    (branch,) = (await bench.branch()).ids
    await bench.switch(branch)
    given = await lab.fleet.create()
    await bench.switch(given.id)
    await bench.delete(branch)
    assert lab.events == [
        events.MachineMade(first, "created"),
        events.MachineMade(branch, "branched", first),
        events.MachineSwitched(first, branch),
        events.MachineMade(given.id, "attached"),
        events.MachineSwitched(branch, given.id),
        events.MachineDeleted(branch),
    ]


async def test_sub_models_need_a_run(lab: Lab):
    result, _ = await run_cell(lab.bench(), "llmQuery('hi')", timeout=10)
    assert "needs a run of vers_rlm" in (result.error or "")


async def test_closing_keeps_kernels_running_for_the_next(lab: Lab):
    bench = lab.bench()
    machine = (await bench.create()).id
    await lab.cell(bench, "x = 5")
    await bench.aclose()
    assert await lab.cell(lab.bench(), "x", machine) == "5"
