"""Machines and commits are compared, with the variables of their kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

from vers_rlm_mcp.errors import UnknownHandle
from vers_rlm_mcp.runs import compare, run_cell

if TYPE_CHECKING:
    from lab import Lab

    from vers_rlm_mcp.runs import Workbench


async def variables(bench: Workbench, first: str, second: str | None = None) -> list[str]:
    difference = await compare(bench, first, second, path="/workspace")
    assert difference.notes == ()
    return [fact.text for fact in difference.facts if fact.kind == "variable"]


async def test_two_commits_are_compared_and_nothing_is_left_of_it(lab: Lab):
    bench = lab.bench()
    machine = (await bench.create()).id
    await bench.write_file("/workspace/plan", b"one\n")
    await lab.cell(bench, "x, same = 1, 2")
    first = (await bench.snapshot()).commit.id
    await bench.write_file("/workspace/plan", b"two\n")
    await lab.cell(bench, "x = 'text'; y = [1]")
    second = (await bench.snapshot()).commit.id
    difference = await compare(bench, first, second, path="/workspace")
    assert [change.text for change in difference.files] == ["~ /workspace/plan (content)"]
    assert difference.files[0].diff == "@@ -1,2 +1,2 @@\n-one\n+two\n \n"
    assert [fact.text for fact in difference.facts if fact.kind == "variable"] == [
        "~ x: int 1 → str[4] 'text'",
        "+ y: list[1] [1]",
    ]
    assert "Variables\n~ x: int 1 → str[4] 'text'\n" in difference.text
    assert await lab.machines() == [machine]
    assert bench.current == machine


async def test_a_copy_without_changes_has_the_same_variables(lab: Lab):
    bench = lab.bench()
    machine = (await bench.create()).id
    await lab.cell(bench, "class A: pass\na, numbers, words = A(), list(range(99)), {'b', 'c'}")
    (branch,) = (await bench.branch()).ids
    assert await variables(bench, machine, branch) == []


async def test_values_that_only_differ_beyond_what_is_shown_are_told_apart(lab: Lab):
    bench = lab.bench()
    machine = (await bench.create()).id
    await lab.cell(bench, "long, deep, text = list(range(99)), {'a': [[1], (2,)]}, 'x' * 5000")
    (branch,) = (await bench.branch()).ids
    await lab.cell(bench, "long[50] = 0; deep['a'][1] = [2]; text = text[:-1] + 'y'")
    assert [line.split()[1] for line in await variables(bench, branch)] == [
        "long:",
        "deep:",
        "text:",
    ]
    assert bench.current == machine


async def test_a_machine_without_a_kernel_gets_none(lab: Lab):
    bench = lab.bench()
    await bench.create()
    (branch,) = (await bench.branch()).ids
    assert await variables(bench, branch) == []
    assert (await bench.exec("ls -A", machine_id=branch, limit=100)).stdout.text == ""


async def test_a_kernel_at_work_is_not_disturbed(lab: Lab):
    bench = lab.bench()
    await bench.create()
    (branch,) = (await bench.branch()).ids
    started, seen = anyio.Event(), list[str]()

    async def work() -> None:
        code = "print('started', flush=True)\nwhile not exec('ls go').stdout: 0"
        result, _ = await run_cell(bench, code, timeout=20, on_output=lambda _: started.set())
        seen.append(result.status)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        await started.wait()
        difference = await compare(bench, branch, path="/workspace")
        assert "Variables were not compared. The kernel of machine" in difference.text
        await bench.write_file("/workspace/go", b"")
    assert seen == ["ok"]


async def test_a_cell_can_ask_what_has_changed_since_a_commit(lab: Lab):
    bench = lab.bench()
    await bench.create()
    code = "c = vmSnapshot()\nwriteFile('new', 'x')\nprint(vmDiff(c, path={path!r}))"
    assert "+ /workspace/new (1 bytes)" in await lab.cell(bench, code.format(path="/workspace"))
    assert "no difference" in await lab.cell(bench, code.format(path="/root"))


async def test_what_is_unknown_is_said(lab: Lab):
    bench = lab.bench()
    await bench.create()
    with pytest.raises(UnknownHandle, match="invented"):
        await compare(bench, "invented")
