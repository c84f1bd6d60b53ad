"""A run, which costs money, does not depend on who reads what it prints."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import signal
import subprocess
import termios
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from conftest import Cli

STEPS = ("print('x' * 60)",) * 3
"""Enough for the progress to come after a reader has left."""


def run_of(cli: Cli, *codes: str) -> list[str]:
    return ["run", "-> x", "--model", cli.script(*codes)]


def recorded(cli: Cli) -> list[str]:
    """The state and the outputs of every run, as a later command prints them."""
    lines = [line.split() for line in cli.ok("runs", "list").splitlines()[1:]]
    return [f"{state} {cli.ok('runs', 'outputs', run).strip()}" for run, _, _, state, *_ in lines]


@pytest.mark.parametrize(
    ("redirection", "stderr"),
    [
        ("2>&1 | head -n 1", ""),
        ("2>&1 | true", ""),
        ("| true", "runs show"),
        ("> /dev/full", "runs show"),
        ("> /dev/full 2> /dev/full", ""),
        (">&-", "runs show"),
        ("2>&-", ""),
        ("<&- >&- 2>&-", ""),
    ],
)
def test_a_run_finishes_whatever_becomes_of_its_streams(cli: Cli, redirection: str, stderr: str):
    command = shlex.join([cli.command, *run_of(cli, *STEPS, "FINAL('done')")])
    done = subprocess.run(
        f"{command} {redirection}",
        shell=True,
        env=cli.environment,
        cwd=cli.home,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert stderr in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert recorded(cli) == ["finished x: done"]
    assert cli.live() == []


def test_a_reader_that_stalls_does_not_hold_a_run_up(cli: Cli):
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    command = [
        cli.command,
        *run_of(cli, *(f"print('{'x' * 400}')" for _ in range(18)), "FINAL('1')"),
    ]
    with subprocess.Popen(
        command, env=cli.environment, cwd=cli.home, stdout=subprocess.PIPE, stderr=write, text=True
    ) as process:
        os.close(write)
        output, _ = process.communicate(timeout=60)
    os.close(read)
    assert (process.returncode, output) == (0, "x: 1\n")


@pytest.mark.parametrize("signals", [[], [signal.SIGHUP] * 2])
def test_a_run_outlives_its_terminal(cli: Cli, signals: Sequence[signal.Signals]):
    terminal, end = os.openpty()

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    command = [cli.command, *run_of(cli, *STEPS, "FINAL('done')")]
    with subprocess.Popen(
        command,
        env=cli.environment,
        cwd=cli.home,
        stdin=end,
        stdout=end,
        stderr=end,
        preexec_fn=take_terminal,
    ) as process:
        os.close(end)
        seen = b""
        while b"Step 1" not in seen:
            seen += os.read(terminal, 1000)
        for number in signals:
            process.send_signal(number)
        os.close(terminal)
        process.wait(timeout=60)
    assert recorded(cli) == ["finished x: done"]
    assert cli.live() == []


def test_the_outputs_of_a_run_can_be_shown_again(cli: Cli):
    result = json.loads(cli.ok(*run_of(cli, "FINAL('done')"), "--json"))
    again = json.loads(cli.ok("runs", "show", result["run_id"], "--json"))
    assert again["outputs"] == result["outputs"] == {"x": "done"}
