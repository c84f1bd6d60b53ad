"""Runs in real machines: isolation, large inputs, and what a machine is switched for."""

from __future__ import annotations

import os
import resource
import subprocess
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from lab import Lab, Turns, cell

from vers_rlm_mcp import runs
from vers_rlm_mcp.kernel import Kernel
from vers_rlm_mcp.machines import open_fleet
from vers_rlm_mcp.runs import events
from vers_rlm_mcp.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

SENTINEL = "sk-ant-sentinel-0123456789"
MIB = 1024 * 1024


async def outputs(real: Lab, code: str, signature: str = "-> x: any", **request: Any) -> Any:
    """What a run of one cell hands in."""
    result = await real.run(signature, Turns(cell(code)), max_iterations=2, **request)
    assert result.status == "finished", result
    return result.outputs["x"]


async def test_switching_moves_commands_and_files_and_not_variables(real: Lab):
    code = """
home = currentVmId()
where = "home"
writeFile("/workspace/where", "home")
branch = vmBranch()
vmSwitch(branch)
writeFile("where", "branch")  # relative paths begin where they do at home
seen = [exec("cat where").stdout, readFile("where"), currentVmId() == branch, where]
vmSwitch(home)
FINAL([*seen, exec("cat where").stdout, readFile("/workspace/where"), currentVmId() == home])
"""
    assert await outputs(real, code) == ["branch", "branch", True, "home", "home", "home", True]


async def test_restoring_goes_back_in_time_and_makes_that_machine_the_current_one(real: Lab):
    code = """
writeFile("/workspace/plan", "a")
commit = vmSnapshot()
writeFile("/workspace/plan", "b")
before, restored = currentVmId(), vmRestore(commit)
FINAL([readFile("/workspace/plan"), currentVmId() == restored, restored != before])
"""
    assert await outputs(real, code) == ["a", True, True]
    (made,) = [e for e in real.happened(events.MachineMade) if e.origin == "restored"]
    (commit,) = real.happened(events.CommitMade)
    (switched,) = real.happened(events.MachineSwitched)
    assert made.parent == commit.commit_id
    assert switched.current == made.machine_id


@pytest.mark.parametrize("where", ["at home", "elsewhere"])
async def test_bytes_and_odd_names_pass_unchanged_wherever_the_machine_is(real: Lab, where: str):
    move = "vmSwitch(vmBranch())" if where == "elsewhere" else ""
    code = f"""
import os
{move}
data = bytes(range(256)) * 4000
path = os.fsdecode(b"/workspace/odd/\\xff $(x) '\\"\\n")
writeFile(path, data)
FINAL([readFile(path, binary=True) == data, exec("ls -b odd").stdout])
"""
    assert await outputs(real, code) == [True, "\\377\\ $(x)\\ '\"\\n\n"]


@pytest.mark.on_vers_too
async def test_a_kernel_that_another_host_had_in_between_is_taken_back_silently(real: Lab):
    bench = real.bench()
    await real.cell(bench, "x = 1")
    machine = await bench.machine()
    await (await Kernel.connect(machine, home_id=machine.id)).aclose()
    assert await real.cell(bench, "x") == "1"
    await bench.aclose()


async def test_a_cell_sees_neither_the_host_nor_its_environment(
    real: Lab, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ANTHROPIC_API_KEY", SENTINEL)
    secret = real.directory / "secret"
    secret.write_text("secret")
    code = f"""
import glob, os
from contextlib import suppress
found = []
for path in glob.glob("/proc/[0-9]*/environ"):
    with suppress(PermissionError):
        found.append(open(path, "rb").read())
paths = [{str(secret)!r}, {str(real.settings.state_dir)!r}]
FINAL([len(found) > 0, b"{SENTINEL}" in b"".join(found), *map(os.path.exists, paths)])
"""
    seen = await outputs(real, code)
    assert seen == [True, False, False, False]


async def test_a_run_leaves_no_process_and_no_mount(real: Lab):
    await outputs(real, "import subprocess; subprocess.Popen(['sleep', '617']); FINAL(vmBranch())")
    assert await real.machines() == []
    mounts = (await anyio.Path("/proc/self/mountinfo").read_text()).splitlines()
    assert not [line for line in mounts if str(real.directory) in line]
    with pytest.raises(subprocess.CalledProcessError):
        await anyio.run_process(["pgrep", "-f", "^sleep 617"])


async def test_a_large_input_comes_over_whole(real: Lab):
    text = "0123456789" * (10 * MIB)
    code = "FINAL([len(text), text[-3:], text.count('0')])"
    seen = await outputs(real, code, "text -> x: any", inputs={"text": text})
    assert seen == [100 * MIB, "789", 10 * MIB]


@pytest.mark.slow
@pytest.mark.assumes("quick")
async def test_a_large_file_does_not_pass_through_the_memory_of_the_host(real: Lab):
    big, size = real.directory / "big", 256 * MIB
    with big.open("wb") as file:
        file.truncate(size)
        file.seek(-4, os.SEEK_END)
        file.write(b"tail")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code = "FINAL(exec('stat -c %s files/big; tail -c 4 files/big').stdout)"
    with runs.opened_files([str(big)], [real.directory]) as files:
        seen = await outputs(real, code, files=files)
    assert seen == f"{size}\ntail"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024


async def test_a_kept_machine_has_its_files_and_variables_in_a_later_server(tmp_path: Path):
    settings = Settings.model_validate({"state_dir": tmp_path / "state"})
    async with open_fleet(settings) as fleet:
        lab = Lab(fleet, settings, tmp_path)
        code = "writeFile('note', 'kept'); found = {1, 2}; FINAL(1)"
        result = await lab.run("-> x: int", Turns(cell(code)), keep_machine=True)
    async with open_fleet(settings) as fleet:
        lab = Lab(fleet, settings, tmp_path)
        bench = lab.bench()
        seen = await lab.cell(bench, "print(found, readFile('note'))", result.machine_id)
        await bench.delete(result.machine_id)
    assert seen == "{1, 2} kept"


async def test_a_cell_that_takes_all_it_can_get_harms_no_other_run(real: Lab):
    greedy = Turns(cell("exec(':(){ :|:& };:', timeout=1)"), *["{}"] * 2)
    await real.run("-> x", greedy, max_iterations=1)
    assert await outputs(real, "FINAL(exec('echo alive').stdout)") == "alive\n"
    assert await real.machines() == []
