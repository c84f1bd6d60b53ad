"""Fifty runs at once: each gets its own answer, and nothing of them stays."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest
import users
from mcp import MCPError

if TYPE_CHECKING:
    from users import User

pytestmark = pytest.mark.slow

RUNS = 50
SECONDS = 90
"""Some fifteen are usual on two processors that do nothing else."""

# Each run works on files, sub-models, a snapshot and a branch, all of which know its number.
SCRIPT = (
    """
import subprocess
open("own", "w").write(n)
subprocess.Popen(["sleep", "86399"], start_new_session=True)
replies = llmQueryBatched([f"double {n} of {part}" for part in range(4)])
commit = vmSnapshot()
""",
    """
home = currentVmId()
branch = vmBranch()
vmSwitch(branch)
exec("echo changed > own")
there = readFile("own").strip()
vmSwitch(home)
""",
    "FINAL([open('own').read(), there, replies, len(exec('ls').stdout.split())])",
    '--- reply when="^double"\ndone',
)


async def run_one(user: User, number: int, answers: dict[int, object]) -> None:
    with suppress(MCPError):  # The server was killed.
        fields = users.fields_of(
            await user.client.call_tool(
                "vers_rlm", {"signature": "n -> answer: any", "inputs": {"n": str(number)}}
            )
        )
        answers[number] = fields["outputs"]["answer"]


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@pytest.fixture
def ample() -> dict[str, str]:
    return {"VERS_RLM_MAX_MACHINES": str(2 * RUNS + 2), "VERS_RLM_MAX_CALLS": str(RUNS + 1)}


@pytest.mark.timeout(2 * SECONDS)
async def test_fifty_runs_at_once_answer_rightly_and_leave_nothing(
    tmp_path: Path, ample: dict[str, str]
):
    answers: dict[int, object] = {}
    async with users.user(tmp_path, **ample) as user:
        user.write_script(*SCRIPT)
        await run_one(user, 0, answers)
        before = descriptors(user.pid)
        with anyio.fail_after(SECONDS):
            async with anyio.create_task_group() as tasks:
                for number in range(1, RUNS + 1):
                    tasks.start_soon(run_one, user, number, answers)
        assert answers == {
            number: [str(number), "changed", ["done"] * 4, 1] for number in range(RUNS + 1)
        }
        assert await user.vm_ids() == []
        assert users.traces(tmp_path, besides=user.pid) == []
        assert not users.children(user.pid)
        assert descriptors(user.pid) <= before
    assert users.traces(tmp_path) == []


@pytest.mark.timeout(2 * SECONDS)
async def test_what_fifty_runs_of_a_killed_server_left_is_swept_at_the_next_start(
    tmp_path: Path, ample: dict[str, str]
):
    answers: dict[int, object] = {}
    vm_ids: list[str] = []
    async with users.user(tmp_path, **ample) as user:
        user.write_script(*SCRIPT)
        async with anyio.create_task_group() as tasks:
            for number in range(RUNS):
                tasks.start_soon(run_one, user, number, answers)
            with anyio.fail_after(SECONDS):
                while len(vm_ids) < RUNS // 2:
                    vm_ids = await user.vm_ids()
            os.kill(user.pid, signal.SIGKILL)
    assert len(answers) < RUNS
    async with users.user(tmp_path, **ample) as user:
        await users.eventually(lambda: not users.traces(tmp_path, vm_ids, user.pid), SECONDS)
        user.write_script(*SCRIPT)
        await run_one(user, 7, answers)
        assert answers[7] == ["7", "changed", ["done"] * 4, 1]
    assert users.traces(tmp_path, vm_ids) == []
