"""Runs on real micro-VMs, where this computer can boot them: what lives on in copies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from family import Family, branching
from lab import HITHER_AND_THITHER, Interrupted, Lab, Turns, cell, stop_when

from vers_rlm_mcp.machines import open_fleet
from vers_rlm_mcp.machines.microsandbox import usable
from vers_rlm_mcp.runs import events
from vers_rlm_mcp.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SECONDS = 60.0

PREPARE = """
import os, random, socket, subprocess, time
value = {"x": object()}
file = open("/workspace/open", "w+"); file.write("kept"); file.flush()
child = subprocess.Popen(["sh", "-c", "read line; echo got $line"],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
server = socket.create_server(("127.0.0.1", 7777))
print("prepared")
"""

LOOK = """
file.seek(0)
client = socket.create_connection(("127.0.0.1", 7777))
accepted, _ = server.accept()
client.sendall(b"hello")
answer = child.communicate("over\\n", timeout=30)[0]
print(list(value), file.read(), accepted.recv(5).decode(), answer.strip())
"""

ALIVE = """
child.stdin.write("over\\n"); child.stdin.flush()
assert child.stdout.readline() == "got over\\n" and list(value) == ["x"]
"""
"""Works once in every kernel that goes back to what `PREPARE` made."""


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    found = usable(tmp_path)
    if not found.yes:
        pytest.skip(found.reason)
    settings = Settings.model_validate({"state_dir": tmp_path, "backend": "microsandbox"})
    async with open_fleet(settings) as fleet:
        yield Lab(fleet, settings, tmp_path)
        assert await fleet.list() == []


async def test_a_kernel_lives_on_in_branches_and_restored_machines(lab: Lab) -> None:
    bench = lab.bench()
    assert await lab.cell(bench, PREPARE, timeout=SECONDS) == "prepared"
    commit = (await bench.snapshot()).commit
    branches = await bench.branch(2)
    restored = await bench.restore(commit.id)
    copies = [*branches.ids, restored.id]
    for copy in copies:
        assert await lab.cell(bench, LOOK, copy, SECONDS) == "['x'] kept hello got over"
    draws = {await lab.cell(bench, "(random.random(), os.urandom(8))", copy) for copy in copies}
    assert len(draws) == len(copies)
    await bench.aclose()
    for machine in await lab.machines():
        await lab.fleet.delete(machine)
    await lab.fleet.delete_commit(commit.id)


async def test_a_run_branches_restores_and_hands_in_what_it_found(lab: Lab) -> None:
    result = await lab.run(
        "-> x: list[str]", Turns(cell(HITHER_AND_THITHER)), max_iterations=2, seconds=5 * SECONDS
    )
    assert result.status == "finished", result
    assert result.outputs["x"] == ["a", "a", "a", "b"]
    assert (result.backend, result.isolation, result.fidelity) == ("microsandbox", "vm", "memory")
    for commit in await lab.fleet.commits():
        await lab.fleet.delete_commit(commit.id)


async def test_branches_and_a_resumed_run_have_the_programs_of_their_kernel(lab: Lab) -> None:
    model = Family(
        *branching(
            "['like a.', 'like b.'], outputs='n: int', score='n'",
            f"{ALIVE}FINAL(readFile('own'), [r.outputs['n'] for r in results])",
            before=PREPARE,
        ),
        a=[cell(f"{ALIVE}writeFile('own', 'a')\nFINAL(1)")],
        b=[cell(f"{ALIVE}writeFile('own', 'b')\nFINAL(2)")],
    )
    settings = {"checkpoints": "step"}
    with pytest.raises((Interrupted, BaseExceptionGroup)):
        await lab.run(
            "-> own, all: list[int]",
            model,
            settings=settings,
            on_event=stop_when(events.CellFinished, 2),
            seconds=5 * SECONDS,
        )
    assert [event.child for event in lab.happened(events.ChildChosen)] == ["2"]
    asked = len(model.asked)
    (run_id,) = lab.journal_ids()
    result = await lab.resume(run_id, model, settings=settings, seconds=5 * SECONDS)
    assert result.outputs == {"own": "b", "all": [1, 2]}
    assert len(model.asked) == asked
    for commit in await lab.fleet.commits():
        await lab.fleet.delete_commit(commit.id)
