"""A cell that breaks its machine does not end the run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from lab import Lab, Speaker, Turns, cell

from vers_rlm_mcp.machines import MachineSpec
from vers_rlm_mcp.runs import events, narrate, prune
from vers_rlm_mcp.store import Journals
from vers_rlm_mcp.values import Completion, Usage

EACH_STEP: dict[str, Any] = {"checkpoints": "step"}

KILL = "import os; os.kill(os.getpid(), 9)"
HANG = """
import signal, time
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
while True:
    try:
        time.sleep(1000)
    except BaseException:
        pass
"""
CLEAR = """
import os, time
os.remove('/workspace/big')
for _ in range(200):
    try:
        writeFile('n', 'x')
        break
    except OSError:  # the limit is looked after now and then
        time.sleep(0.05)
"""
DELETE_PYTHON = f"exec('rm -rf /usr/bin/python3* /usr/lib/python3*'); {KILL}"


@pytest.mark.parametrize("breaking", [KILL, HANG, DELETE_PYTHON], ids=["kill", "hang", "delete"])
async def test_a_broken_machine_is_put_back_and_the_model_is_told(real: Lab, breaking: str):
    model = Turns(
        cell("mine = [1]; writeFile('n', 'before')"),
        cell(f"mine.append(2); writeFile('n', 'after'); print('so far')\n{breaking}"),
        cell("FINAL(mine, readFile('n'), exec('python3 -c \"print(5)\"'))"),
    )
    result = await real.run(
        "-> mine: list, n, said",
        model,
        settings={**EACH_STEP, "cell_timeout": 2 if breaking is HANG else 20},
    )
    assert result.outputs == {"mine": [1], "n": "before", "said": "5"}
    assert "put back to what it was at the end of step 1" in model.told
    assert "so far" in model.told
    assert "2 more times" in model.told
    (recovered,) = real.happened(events.MachineRecovered)
    assert (recovered.step, recovered.checkpoint) == (2, 1)
    assert recovered.lost_id != recovered.machine_id
    assert await real.machines() == []


async def test_a_machine_that_is_gone_is_put_back(real: Lab):
    async def delete(_: object) -> Completion:
        (machine,) = await real.machines()
        await real.fleet.backend.delete(machine)
        return Completion("Gone.", Usage())

    model = Turns(cell("mine = 1"), cell("llmQuery('Delete it.')"), cell("FINAL(mine)"))
    result = await real.run("-> n: int", model, sub_model=Speaker(delete), settings=EACH_STEP)
    assert (result.status, result.outputs) == ("finished", {"n": 1})
    assert "put back" in model.told


async def test_a_full_disk_is_the_models_to_clear(real: Lab):
    model = Turns(
        cell("mine = 1"),
        cell("open('/workspace/big', 'wb').write(bytes(200 << 20))"),
        cell(CLEAR + "\nFINAL(mine)"),
    )
    result = await real.run(
        "-> n: int",
        model,
        settings={**EACH_STEP, "fs_size_mib": 64},
        spec=MachineSpec(None, None, 64),
    )
    assert (result.status, result.outputs) == ("finished", {"n": 1})


async def test_a_machine_is_put_back_only_so_many_times(lab: Lab):
    model = Turns(*[cell(KILL)] * 3, cell("FINAL(1)"))
    result = await lab.run("-> n: int", model, settings={**EACH_STEP, "max_recoveries": 2})
    assert result.outputs == {"n": 1}, "the kernel is started anew, without its variables"
    assert len(lab.happened(events.MachineRecovered)) == 2
    assert "This was the last time" in model.asked[2][-1].content


async def test_without_checkpoints_the_kernel_is_restarted_and_its_variables_are_named(lab: Lab):
    model = Turns(cell("mine = 1"), cell(KILL), cell("FINAL('on')"))
    result = await lab.run("-> x", model, settings={"checkpoints": "off"})
    assert result.outputs == {"x": "on"}
    assert "These variables are lost: mine. Files are still there." in model.told


async def test_a_machine_of_the_caller_is_never_replaced(lab: Lab):
    machine = await lab.fleet.create(keep=True)
    model = Turns(cell("mine = 1"), cell(KILL), cell("FINAL(currentVmId())"))
    result = await lab.run("-> x", model, machine_id=machine.id, settings=EACH_STEP)
    assert result.outputs == {"x": machine.id}
    assert not lab.happened(events.MachineRecovered)


async def test_the_checkpoints_of_old_runs_are_deleted(lab: Lab, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("vers_rlm_mcp.runs.history.CHECKPOINTED_RUNS", 2)
    done = [await lab.run("-> x", Turns(cell("FINAL('1')")), settings=EACH_STEP) for _ in range(4)]
    commits = lab.fleet.ledger.commits(lab.fleet.backend.name)
    kept = {commit.run for commit in commits if not commit.deleted_at}
    assert kept == {result.run_id for result in done[-2:]}
    assert len(await lab.fleet.commits()) == 4


async def test_the_runs_of_one_principal_do_not_cost_another_its_checkpoints(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("vers_rlm_mcp.runs.history.CHECKPOINTED_RUNS", 1)
    ann, bob = (replace(lab, fleet=lab.fleet.seen_by(name)) for name in ("ann", "bob"))
    hers = await ann.run("-> x", Turns(cell("FINAL('1')")), settings=EACH_STEP)
    his = await bob.run("-> x", Turns(cell("FINAL('1')")), settings=EACH_STEP)
    hers_too = await ann.run("-> x", Turns(cell("FINAL('1')")), settings=EACH_STEP)
    kept = {commit.run for commit in await lab.fleet.checkpoints()}
    assert kept == {his.run_id, hers_too.run_id}
    assert hers.run_id not in {commit.run for commit in await ann.fleet.checkpoints()}


async def test_the_oldest_records_go_when_they_take_too_much(lab: Lab):
    noise = "import os; print(os.urandom(300_000).hex())"
    settings = {"max_record_mib": 1}
    runs = [
        await lab.run("-> x", Turns(cell(noise), cell("FINAL('1')")), settings=settings)
        for _ in range(3)
    ]
    assert lab.journal_ids() == [runs[2].run_id]
    assert {commit.run for commit in await lab.fleet.checkpoints()} <= {runs[2].run_id}


@pytest.mark.parametrize(("keep", "left"), [(5, 3), (3, 3), (2, 2), (0, 0)])
async def test_pruning_keeps_the_latest_runs_and_their_checkpoints(lab: Lab, keep: int, left: int):
    done = [await lab.run("-> x", Turns(cell("FINAL('1')")), settings=EACH_STEP) for _ in range(3)]
    journals = Journals(lab.settings.state_dir)
    pruned = await prune(lab.fleet, journals, keep)
    gone = [result.run_id for result in done[: len(done) - left]]
    assert list(pruned) == gone
    assert lab.journal_ids() == [result.run_id for result in done if result.run_id not in gone]
    assert len(await lab.fleet.commits()) == 2 * left
    assert await lab.fleet.snapshots() == []


async def test_what_is_too_large_for_checkpoints_is_told_once(lab: Lab):
    model = Turns(
        cell("x = 'a' * 300_000_000; y = 1"), cell("print(y)"), cell("y"), cell("FINAL(len(x))")
    )
    result = await lab.run("-> n: int", model, settings={"checkpoints": "step"})
    assert result.outputs == {"n": 300_000_000}
    told = [message.content for message in model.asked[-1] if "without x" in message.content]
    assert len(told) == 1
    assert "keep in files what you need then" in told[0]
    lines = [line for line in map(narrate, lab.events) if line and "without x" in line]
    assert len(lines) == 1
