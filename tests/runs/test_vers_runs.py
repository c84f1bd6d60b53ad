"""Runs on machines of Vers: the emulator in the mode that lets kernels live on in copies."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from family import Family
from killing import killable
from lab import HITHER_AND_THITHER, Lab, Turns, cell

from vers_emulator import Options, VersEmulator
from vers_rlm_mcp import runs
from vers_rlm_mcp.machines import open_fleet
from vers_rlm_mcp.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture(scope="module")
async def emulator(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[VersEmulator]:
    state = tmp_path_factory.mktemp("vers")
    async with VersEmulator(state, Options(fork_kernels=True)) as running:
        yield running


@pytest.fixture
async def vers(
    emulator: VersEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Lab]:
    """A place to run things in, opened as a server does it, from the environment."""
    for name, value in emulator.facts()["environment"].items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("VERS_RLM_BACKEND", "auto")
    settings = Settings.model_validate({"state_dir": tmp_path / "state"})
    async with open_fleet(settings) as fleet:
        yield Lab(fleet, settings, tmp_path)
    assert list(emulator.vms) == []


async def test_a_run_branches_restores_and_hands_in_what_it_found(vers: Lab) -> None:
    lock = "import threading\nlock = threading.Lock()  # cannot be pickled"
    code = f"{lock}\n{HITHER_AND_THITHER}"
    result = await vers.run("-> x: list[str]", Turns(cell(code)), max_iterations=2)
    assert result.status == "finished", result
    assert result.outputs["x"] == ["a", "a", "a", "b"]
    assert (result.backend, result.isolation, result.fidelity) == ("vers", "vm", "memory")


async def test_a_copys_kernel_has_its_variables_and_the_parents_keeps_running(vers: Lab) -> None:
    bench = vers.bench()
    await vers.cell(bench, "items = [1, 2]")
    branch = await vers.cell(bench, "items.append(3); made = vmBranch(); items.append(4)\nmade")
    # In the copy the call that was in flight failed, and with it the rest of that cell.
    branch = branch.strip("'")
    assert await vers.cell(bench, "items", branch) == "[1, 2, 3]"
    assert await vers.cell(bench, "'made' in globals()", branch) == "False"
    assert await vers.cell(bench, "items") == "[1, 2, 3, 4]"
    assert await vers.cell(bench, "items.append(5); items", branch) == "[1, 2, 3, 5]"
    assert await vers.cell(bench, "currentVmId()", branch) == repr(branch)
    await bench.aclose()


async def test_kernels_of_copies_draw_random_numbers_of_their_own(vers: Lab) -> None:
    bench = vers.bench()
    await vers.cell(bench, "import os, random; random.seed(5)")
    copies = (await bench.branch(2)).ids
    draws = [
        await vers.cell(bench, "random.random(), os.urandom(8)", place) for place in (None, *copies)
    ]
    assert len(set(draws)) == len(draws)
    await bench.aclose()


async def test_a_restored_kernel_has_its_variables(vers: Lab) -> None:
    bench = vers.bench()
    await vers.cell(bench, "x = 41")
    commit = (await bench.snapshot()).commit
    await vers.cell(bench, "x = 0")
    restored = await bench.restore(commit.id)
    assert await vers.cell(bench, "x + 1", restored.id) == "42"
    await bench.aclose()


async def test_a_killed_run_resumes_from_the_checkpoint_that_the_service_keeps(
    emulator: VersEmulator, tmp_path: Path
) -> None:
    model = Family(
        cell("x = 6; writeFile('n', '7')"), cell("n = x * int(readFile('n'))"), cell("FINAL(n)")
    )
    settings = {**emulator.facts()["environment"], "VERS_RLM_CHECKPOINTS": "step"}
    async with killable(tmp_path / "home", model, settings) as run:
        await run.kill_at({"event": "checkpoint_made", "step": 1}, "run", "-> n: int")
        assert len(emulator.vms) == 1
        result = json.loads(await run.command("runs", "resume", run.run_id, "--json"))
        assert result["outputs"] == {"n": 42}
        assert not run.paid_again
        assert len(run.asked) == 3
    assert list(emulator.vms) == []


async def test_a_cell_whose_connection_breaks_says_so_and_keeps_the_variables(
    vers: Lab, emulator: VersEmulator
) -> None:
    bench = vers.bench()
    await vers.cell(bench, "x = 1")

    def cut(text: str) -> None:
        for vm in emulator.vms:
            vm.disconnect()

    result, _ = await runs.run_cell(
        bench, "x = 2; print('here'); import time; time.sleep(60)", timeout=60, on_output=cut
    )
    assert result.status == "interrupted", result
    assert "The connection was lost and restored" in (result.error or "")
    assert await vers.cell(bench, "x") == "2"
    await bench.aclose()
