"""Whatever way a server ends or a call is cancelled, in mid-run, nothing of it stays."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import anyio
import pytest
import users

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

BUSY = (
    """
import subprocess
subprocess.Popen(["sleep", "86398"], start_new_session=True)
vmBranch(2)
""",
    "exec('trap \"\" TERM INT HUP; while :; do sleep 1; done')",
)
"""Steps of a run that has three machines after the first and does not end."""

SECONDS = 10
"""What an end may take here: a client waits two seconds before it sends SIGTERM."""


@pytest.mark.parametrize("way", ["end of input", "SIGTERM", "SIGINT", "SIGHUP"])
async def test_a_server_that_ends_in_mid_run_leaves_nothing(tmp_path: Path, way: str):
    async with users.user(tmp_path) as user:
        user.write_script(*BUSY)
        async with user.running("vers_rlm", until="Step 1", signature="-> answer"):
            vm_ids = await user.vm_ids()
            assert len(vm_ids) == 3
            if way != "end of input":
                os.kill(user.pid, signal.Signals[way])
                await users.eventually(lambda: not users.is_alive(user.pid), SECONDS)
    assert not users.is_alive(user.pid)
    assert users.traces(tmp_path, vm_ids) == []


async def test_a_killed_server_leaves_nothing_after_the_next_start(tmp_path: Path):
    async with users.user(tmp_path) as user:
        user.write_script(*BUSY)
        async with user.running("vers_rlm", until="Step 1", signature="-> answer"):
            vm_ids = await user.vm_ids()
            assert len(vm_ids) == 3
            os.kill(user.pid, signal.SIGKILL)
            await users.eventually(lambda: not users.is_alive(user.pid), SECONDS)
    async with users.user(tmp_path) as user:
        await user.exec("true")
        mine = await user.vm_ids()
        await users.eventually(lambda: not left(vm_ids, user), SECONDS)
        assert (await user.run("FINAL(1)"))["outputs"] == {"answer": 1}
    assert users.traces(tmp_path, [*vm_ids, *mine]) == []


def left(vm_ids: list[str], user: users.User) -> list[str]:
    """What there is of machines that are not those of a server that lives."""
    names = [vm_id.partition("-")[2] for vm_id in vm_ids]
    return [
        trace
        for trace in users.traces(user.home, vm_ids, user.pid)
        if any(name in trace for name in names)
    ]


async def test_a_cancelled_run_leaves_no_machine_within_a_second(tmp_path: Path):
    async with users.user(tmp_path) as user:
        user.write_script(*BUSY)
        async with user.running("vers_rlm", until="Step 1", signature="-> answer") as run:
            vm_ids = await user.vm_ids()
            run.cancel()
            started = time.monotonic()
            await users.eventually(lambda: not users.traces(tmp_path, vm_ids, user.pid), SECONDS)
            assert time.monotonic() - started < 1
        assert await user.vm_ids() == []


async def test_two_servers_share_a_state_directory_and_end_only_what_is_theirs(tmp_path: Path):
    async with users.user(tmp_path) as one, one.machine() as vm_id:
        await one.exec("echo mine > note; sleep 86396 > /dev/null 2>&1 &")
        async with users.user(tmp_path) as other:
            assert await other.vm_ids() == [vm_id]
            text = await other.error("exec", command="true", vmId=vm_id)
            assert str(one.pid) in text
            assert str(one.pid) in await other.error("vmDelete", vmId=vm_id)
            assert (await other.run("FINAL(exec('ls').stdout)"))["outputs"] == {"answer": ""}
            commit = (await one.call("vmSnapshot"))["commit_id"]
            await other.call("vmRestore", commitId=commit)
            assert await other.exec("cat note") == "mine\n"
        assert await one.vm_ids() == [vm_id]
        assert await one.exec("cat note; pgrep -c sleep") == "mine\n1\n"


async def test_two_servers_that_start_at_once_on_a_new_state_directory_both_work(tmp_path: Path):
    answers: list[str] = []

    async def work() -> None:
        async with users.user(tmp_path) as user:
            answers.append(await user.exec("echo works"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        tasks.start_soon(work)
    assert answers == ["works\n", "works\n"]
    assert users.traces(tmp_path) == []


async def test_runs_at_the_same_time_do_not_meet(tmp_path: Path):
    async with users.user(tmp_path) as user:
        user.write_script("import time\nwriteFile('f', n)\ntime.sleep(1)", "FINAL(readFile('f'))")
        answers: dict[str, str] = {}

        async def run(name: str) -> None:
            fields = await user.call("vers_rlm", signature="n -> answer", inputs={"n": name})
            answers[name] = fields["outputs"]["answer"]

        async with anyio.create_task_group() as tasks:
            for number in range(4):
                tasks.start_soon(run, f"run {number}")
        assert answers == {name: name for name in answers}
        assert len(answers) == 4
