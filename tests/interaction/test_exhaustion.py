"""Machines that use up all they may, while a sibling goes on and ends right."""

from __future__ import annotations

import os
import signal
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest
import users

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from users import User

pytestmark = pytest.mark.slow

SIBLING = """
import time
total = 0
for _ in range(8):
    total += int(exec("seq 1 100 | wc -l").stdout)
    writeFile("note", str(total))
    time.sleep(0.1)
assert readFile("note") == "800"
FINAL(total)
"""


@asynccontextmanager
async def sibling(user: User) -> AsyncGenerator[None]:
    """A run in a machine of its own that has to end right, whatever happens meanwhile."""
    user.write_script(SIBLING)
    async with user.running("vers_rlm", until="Machine", signature="-> answer: int") as run:
        yield
        assert users.fields_of(await run.result())["outputs"] == {"answer": 800}


KILL_ALL = """
import os
os.kill(-1, 9)  # also what connects the kernel, which is then connected anew
"""

PATIENT = """
import time
for _ in range(50):  # what was killed takes a moment to be gone
    try:
        if answer := exec('echo alive').stdout:
            break
    except OSError:
        pass
    time.sleep(0.1)
FINAL(answer)
"""


async def test_a_fork_bomb_ends_in_an_error_and_its_machine_lives_on(user: User):
    bomb = "exec('f(){ f|f& };f; sleep 1', timeout=2)\nprint('went on')"
    async with sibling(user):
        result = await user.run(bomb, KILL_ALL, PATIENT)
    assert result["outputs"] == {"answer": "alive\n"}, result
    assert await user.vm_ids() == []


async def test_a_command_that_wants_more_processes_than_there_are_says_so(user: User):
    async with user.machine() as vm_id:
        command = "sh -c 'for i in $(seq 2000); do sleep 30 & done'"
        result = await user.call("exec", command=command, timeout=20, vmId=vm_id)
        assert "Cannot fork" in result["stderr"], result
        # What runs in the background still holds every place: the answer says what to do.
        again = await user.call("exec", command="echo alive", vmId=vm_id)
        assert again["stdout"] == "alive\n"
        assert "pkill -9 NAME" in again["stderr"]
        await user.exec("pkill -9 sleep", vmId=vm_id)
        result = await user.call("exec", command="seq 3 | wc -l", vmId=vm_id)
        assert (result["stdout"], result["stderr"]) == ("3\n", "")


@pytest.mark.parametrize("hog", ["'x' * (8 << 30)", "[bytearray(1 << 24) for _ in range(999)]"])
async def test_a_memory_hog_gets_an_error_and_keeps_the_variables(user: User, hog: str):
    async with sibling(user):
        result = await user.run(
            f"kept = 1\nhog = {hog}", "FINAL(kept)", vmConfig={"mem_size_mib": 256}
        )
    assert "MemoryError\n[cells may hold 224 MiB" in result["trajectory"][0]["output"], result
    assert result["outputs"] == {"answer": 1}


async def test_a_memory_hog_among_the_commands_does_not_take_the_variables(user: User):
    code = "kept = 1\nprint(exec('head -c 2G /dev/zero | tail -c 1G > /dev/null').exit_code)"
    result = await user.run(code, "FINAL(kept)", vmConfig={"mem_size_mib": 256})
    assert result["outputs"] == {"answer": 1}, result


async def test_a_full_disk_is_an_error_and_deleting_makes_room_again(user: User):
    fill = "for i in $(seq 40); do head -c 16M /dev/zero > big$i || break; sleep 0.1; done"
    free = """
exec("rm big*")
while True:
    try:
        writeFile("note", "x" * 9999)
        break
    except OSError as error:
        print(error)
"""
    async with sibling(user):
        result = await user.run(
            f"print(exec({fill!r}))",
            free,
            "FINAL(len(readFile('note')))",
            vmConfig={"fs_size_mib": 64},
        )
    assert "File size limit exceeded" in result["trajectory"][0]["output"], result
    assert result["outputs"] == {"answer": 9999}, result


async def test_a_full_disk_refuses_a_file_with_the_reason(user: User):
    note = {"path": "/workspace/note", "content": "x" * 9999}
    async with user.machine(fs_size_mib=64):
        await user.exec("for i in $(seq 9); do head -c 16M /dev/zero > big$i; done; sleep 3")
        text = await user.error("writeFile", **note)
        assert "has written all that it may" in text
        assert "delete files" in text
        assert (await user.call("readFile", path="/workspace/big1", length=4))["length"] == 4
        await user.exec("rm big*; sleep 3")
        await user.call("writeFile", **note)


async def test_python_can_be_used_to_make_room_on_a_full_disk(user: User):
    async with user.machine(fs_size_mib=64):
        await user.exec("for i in $(seq 9); do head -c 16M /dev/zero > big$i; done; sleep 3")
        code = "import os\nfor n in range(1, 10): os.remove(f'big{n}')\nprint('freed')"
        assert (await user.call("python", code=code))["output"] == "freed\n"


async def test_a_file_too_large_for_its_machine_is_refused_before_the_run_begins(user: User):
    big = user.allowed / "big"
    with big.open("wb") as file:
        file.truncate(256 << 20)
    user.write_script("FINAL(1)")
    text = await user.error(
        "vers_rlm", signature="-> answer", files=[str(big)], vmConfig={"fs_size_mib": 64}
    )
    assert any(word in text for word in ("large", "space", "full", "limit")), text
    assert await user.vm_ids() == []
    big.unlink()


async def test_a_machine_that_dies_is_reported_and_can_be_deleted(user: User):
    async with user.machine() as vm_id:
        await kill_machines(user)
        assert "ended" in await user.error("exec", command="true", vmId=vm_id)
    assert await user.vm_ids() == []


async def test_a_run_whose_machine_dies_continues_from_a_checkpoint(user: User):
    user.write_script("print('found')", "vmSnapshot(); exec('sleep 600')", "FINAL('on')")
    # The checkpoint of step 1 was made before the cell of step 2 began.
    async with user.running("vers_rlm", until="vmSnapshot", signature="-> answer") as run:
        await kill_machines(user)
        result = users.fields_of(await run.result())
    assert (result["status"], result["outputs"]) == ("finished", {"answer": "on"})
    assert not result["warnings"]
    assert await user.vm_ids() == []


async def kill_machines(user: User) -> None:
    """End every machine of a server from outside, as a host that is out of memory may do."""
    outer = users.children(user.pid)
    inner = [pid for parent in outer for pid in users.children(parent)]
    assert inner
    for pid in inner:
        os.kill(pid, signal.SIGKILL)
    await users.eventually(lambda: not any(map(users.is_alive, (*inner, *outer))), within=10)


GREEDY = {
    "descriptors": "files = []\nwhile True: files.append(open('/dev/null'))",
    "zombies": "import os\nwhile True:\n    if not os.fork(): os._exit(0)",
    "a sparse file of an exabyte": "open('big', 'wb').truncate(1 << 60)",
    "a path of 10,000 characters": "writeFile('/'.join(['d' * 250] * 40), 'x')",
    "an environment of a gigabyte": "import os\nos.environ['A'] = 'x' * (1 << 30)\nexec('true')",
    "the text of an exception": "raise ValueError('x' * (1 << 28))",
    "recursion": "def f(): return f()\nf()",
    "SIGINT ignored": "import signal\nsignal.signal(2, signal.SIG_IGN)\nwhile True: pass",
    "signals blocked": "import signal, time\n"
    "signal.pthread_sigmask(0, signal.valid_signals())\nwhile True: time.sleep(9)",
    "compiled code that never returns": "pow(7, 10 ** 9)",
    "sessions of their own": "import subprocess\nwhile True:\n"
    "    subprocess.Popen(['setsid', 'sh', '-c', 'sleep 999 & sleep 999'])",
}
"""What a cell may want without end, by what it is."""


@pytest.mark.parametrize("code", GREEDY.values(), ids=GREEDY.keys())
async def test_a_greedy_cell_ends_in_an_error_and_its_run_continues(user: User, code: str):
    before, descriptors = users.high_water(user.pid), open_files(user.pid)
    async with sibling(user):
        # The last is said twice, as what is killed takes the way to the kernel along.
        end = "import os\nfiles = None\nos.kill(-1, 9)"
        result = await user.run(code, end, "FINAL('right')", "FINAL('right')")
    assert result["outputs"] == {"answer": "right"}, result
    told = result["trajectory"][0]["output"]
    assert "Error" in told or "time limit" in told, told
    assert len(told) < 50_000
    assert users.high_water(user.pid) - before < 64
    assert open_files(user.pid) <= descriptors
    assert users.traces(user.home, besides=user.pid) == []


def open_files(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


async def test_twenty_thousand_files_are_frozen_and_branched_as_quickly_as_one(user: User):
    make = "for d in $(seq 20); do mkdir d$d; (cd d$d; touch $(seq 1000)); done"
    async with user.machine() as vm_id:
        await user.exec(make, vmId=vm_id, timeout=50)
        with anyio.fail_after(20):  # On a busy host; half a second is usual.
            await user.call("vmSnapshot", vmId=vm_id)
            copy = await user.call("vmBranch", vmId=vm_id)
        (branch,) = set(await user.vm_ids()) - {vm_id}
        assert branch in str(copy)
        assert await user.exec("ls d* | grep -c 1000", vmId=branch) == "20\n"
        with anyio.fail_after(20):
            await user.call("vmDelete", vmId=branch)
