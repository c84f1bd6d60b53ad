"""A daemon at work: on this computer, over the streams of a local program."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

import anyio
import pytest

from vers_rlm_mcp.errors import BackendUnavailable, MachineError
from vers_rlm_mcp.machines import ExitStatus
from vers_rlm_mcp.machines.daemon import Daemon, Job, client, command, connect_process, rest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SECONDS = 30.0

ORPHAN = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        time.sleep(1000)
    os._exit(0)
os.wait()
"""


@pytest.fixture
async def daemon() -> AsyncIterator[Daemon]:
    started = await connect_process(["sh", "-c", command()])
    with anyio.fail_after(SECONDS):
        yield started
    await started.aclose()


def run(daemon: Daemon, *argv: str, **env: str) -> Job:
    request = {"do": "run", "argv": argv, "env": env, "cwd": "/", "make_cwd": False}
    return daemon.start(request)


async def test_a_program_runs_and_tells_how_it_ended(daemon: Daemon) -> None:
    job = run(daemon, "sh", "-c", "echo $A; cat; exit 7", A="a")
    await job.stdin.send(b"input")
    await job.stdin.aclose()
    assert await rest(job.stdout) == "a\ninput"
    assert await job.wait() == ExitStatus(7)
    await job.aclose()


async def test_a_program_that_does_not_exist_is_reported(daemon: Daemon) -> None:
    assert await rest(run(daemon, "no-such-program").report) == "!2 No such file or directory"


async def test_input_for_a_job_that_did_not_start_waits_for_no_one(
    daemon: Daemon, tmp_path: Path
) -> None:
    job = daemon.start({"do": "write", "path": str(tmp_path), "mode": 0o644})
    with pytest.raises(anyio.BrokenResourceError):
        await job.stdin.send(bytes(16 << 20))
    assert (await rest(job.report)).startswith("!22 ")


async def test_signals_are_reset_for_programs_of_a_daemon_that_ignores_them() -> None:
    started = await connect_process(["nohup", "sh", "-c", command()])
    with anyio.fail_after(SECONDS):
        job = run(started, "sh", "-c", "kill -HUP $$; echo ignored")
        assert await job.wait() == ExitStatus(None, 1)
    await started.aclose()


async def test_killing_reaches_what_a_program_has_left_behind_in_its_session(
    daemon: Daemon,
) -> None:
    job = run(daemon, "sh", "-c", "sleep 1000 & echo $!")
    left = int((await job.stdout.receive()).strip())
    assert await job.wait() == ExitStatus(0)
    await job.kill()
    look = run(daemon, "sh", "-c", f"grep -s State: /proc/{left}/status || echo gone")
    assert (await rest(look.stdout)) in ("gone", "State:\tZ (zombie)")


async def test_what_an_earlier_job_has_left_behind_outlives_later_ones(daemon: Daemon) -> None:
    first = run(daemon, "python3", "-c", ORPHAN)
    left = int((await first.stdout.receive()).strip())
    assert await first.wait() == ExitStatus(0)
    later = run(daemon, "sleep", "1000")
    await later.kill()
    assert await later.wait() == ExitStatus(None, 9)
    look = run(daemon, "sh", "-c", f"kill -9 {left} && echo lived")
    assert await rest(look.stdout) == "lived"


async def test_a_stopped_daemon_is_given_up_when_it_is_to_kill(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "KILL_SECONDS", 0.5)
    job = run(daemon, "sleep", "1000")
    number = int(await rest(run(daemon, "sh", "-c", "echo $PPID").stdout))
    os.kill(number, signal.SIGSTOP)
    assert not await job.kill()
    assert daemon.lost
    assert await job.wait() is None


async def test_programs_inherit_no_descriptor(daemon: Daemon) -> None:
    job = run(daemon, sys.executable, "-c", "import os; print(sorted(os.listdir('/proc/self/fd')))")
    assert await rest(job.stdout) == "['0', '1', '2', '3']"  # the last one lists the others


async def test_a_daemon_that_is_killed_is_lost_with_its_jobs(daemon: Daemon) -> None:
    job = run(daemon, "sleep", "1000")
    await run(daemon, "pkill", "-9", "-f", "vers_rlm_machines.daemon").wait()
    assert await job.wait() is None
    assert daemon.lost
    assert not await daemon.is_responsive()


async def test_where_there_is_no_python_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match="no python3"):
        await connect_process(["/bin/sh", "-c", command()], env={"PATH": str(tmp_path)})


@pytest.mark.parametrize("argv", [["no-such-program"], ["sh", "-c", "echo no >&2; exit 1"]])
async def test_a_program_that_leads_nowhere_is_an_error(argv: list[str]) -> None:
    with anyio.fail_after(SECONDS), pytest.raises(MachineError, match="no"):
        await connect_process(argv)
