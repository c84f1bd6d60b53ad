"""Twenty runs are under way when their server ends: none is lost without a word."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import users

from small_disk import Disk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from users import User

pytestmark = pytest.mark.slow

RUNS = 20
FEWER = 8
"""For the other ways, which differ from the first in what the runs' last moments are like."""

SECONDS = 120

# Runs of different lengths, so that an end meets each at another point.
SCRIPT = (
    "import time\nmine = int(n)",
    "writeFile('own', n)\ntime.sleep(mine % 5)",
    "FINAL(int(readFile('own')) * mine)",
)

VARIABLES = {
    "VERS_RLM_MAX_MACHINES": str(2 * RUNS),
    "VERS_RLM_WAIT_SECONDS": "0.1",
    "VERS_RLM_CHECKPOINTS": "step",
}


@pytest.mark.timeout(2 * SECONDS)
@pytest.mark.parametrize("way", ["SIGKILL", "SIGTERM", "end of input", "a journal cut in mid-line"])
async def test_every_run_is_finished_resumable_or_lost_for_a_reason(tmp_path: Path, way: str):
    async with users.user(tmp_path, **VARIABLES) as user:
        user.write_script(*SCRIPT)
        begun = await begin(user, RUNS if way == "SIGKILL" else FEWER)
        await until_some_have_ended(user)
        if way != "end of input":
            os.kill(user.pid, signal.SIGTERM if way == "SIGTERM" else signal.SIGKILL)
            await users.eventually(lambda: not users.is_alive(user.pid), SECONDS)
    if way == "a journal cut in mid-line":
        cut_journals(tmp_path)
    assert await go_on_with_all(tmp_path, begun) > 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path)
    yield disk
    disk.unmount()


@pytest.mark.timeout(2 * SECONDS)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
async def test_the_same_holds_when_the_disk_was_full(disk: Disk):
    async with users.user(disk.place, **VARIABLES) as user:
        user.write_script(*SCRIPT)
        async with user.machine():
            pass  # what all machines need lies on the disk now
        begun = await begin(user, FEWER)
        disk.leave("pages", 100)
        for run_id in begun:
            await ended(user, run_id)
        assert await user.vm_ids() == []
    disk.release()
    # What a model has seen fail, it does again another way.
    await go_on_with_all(disk.place, begun, (*SCRIPT, "FINAL(mine * mine)"))


async def go_on_with_all(
    home: Path, begun: dict[str, int], script: tuple[str, ...] = SCRIPT
) -> int:
    """Start another server, and see every run either end right or be given up for a reason.

    Returns how many were resumed.
    """
    async with users.user(home, **VARIABLES) as user:
        user.write_script(*script)
        found = await listed(user)
        assert found.keys() == begun.keys()
        resumable = {run_id for run_id, run in found.items() if "rlmResume" in run["next"]}
        for run_id in resumable:
            await user.call("rlmResume", runId=run_id)
        for run_id, run in found.items():
            answer = await ended(user, run_id)
            if run_id in resumable or run["status"] == "finished":
                assert answer["outputs"] == {"answer": begun[run_id] ** 2}, answer
            else:
                assert "cannot be resumed, since" in run["next"], run
        assert await user.vm_ids() == []
    assert users.traces(home) == []
    return len(resumable)


def cut_journals(home: Path) -> None:
    for journal in home.rglob("events.jsonl"):
        journal.write_bytes(journal.read_bytes()[:-20])


async def begin(user: User, runs: int) -> dict[str, int]:
    """Start the runs; their ids, each with its number."""
    begun: dict[str, int] = {}

    async def one(number: int) -> None:
        inputs = {"n": str(number)}
        answer = await user.call("vers_rlm", signature="n -> answer: int", inputs=inputs)
        begun[answer["run_id"]] = number

    async with anyio.create_task_group() as tasks:
        for number in range(runs):
            tasks.start_soon(one, number)
    return begun


async def until_some_have_ended(user: User) -> None:
    with anyio.fail_after(SECONDS):
        while not any(run["status"] == "finished" for run in (await listed(user)).values()):
            pass


async def listed(user: User) -> dict[str, dict[str, Any]]:
    answer = await user.call("rlmRuns")
    return {run["run_id"]: run for run in answer["runs"]}


async def ended(user: User, run_id: str) -> dict[str, Any]:
    with anyio.fail_after(SECONDS):
        while (answer := await user.call("rlmResult", runId=run_id))["status"] == "running":
            pass
    return answer
