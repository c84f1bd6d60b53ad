"""A state directory that cannot be used is one clear sentence, and one that can is private."""

from __future__ import annotations

import os
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest
from conftest import COMMAND, Cli

if TYPE_CHECKING:
    from pathlib import Path

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount, and be others")


def refusal(stderr: str) -> str:
    (line,) = [line for line in stderr.splitlines() if "INFO" not in line]
    return line


@pytest.mark.parametrize("place", ["file", "file/below"])
@pytest.mark.parametrize("command", [["machines", "list"], ["doctor"]])
def test_a_file_in_its_place_is_left_and_named(cli: Cli, place: str, command: list[str]):
    (cli.home / "file").write_text("mine")
    done = cli(*command, "--state-dir", cli.home / place)
    assert done.returncode != 0
    assert f"The state directory {cli.home / place} cannot be used: Not a directory" in (
        done.stdout + done.stderr
    )
    assert "Set VERS_RLM_STATE_DIR" in done.stdout + done.stderr
    assert (cli.home / "file").read_text() == "mine"


@as_root
@pytest.mark.parametrize(
    ("options", "why"), [("ro", "Read-only file system"), ("size=16k", "No space left")]
)
@pytest.mark.parametrize("command", ["machines list", "doctor", "runs list"])
def test_a_place_that_cannot_be_written_is_named(cli: Cli, options: str, why: str, command: str):
    done = cli.shell_in_mount_namespace(
        f"mkdir state; mount -t tmpfs -o mode=700,{options} none state; "
        f'dd if=/dev/zero of=state/full 2> /dev/null || true; "$0" {command} 2>&1 || echo failed'
    )
    assert "Traceback" not in done.stdout
    assert str(cli.state) in done.stdout
    assert why in done.stdout or "disk is full" in done.stdout
    assert ("failed" in done.stdout) == (command != "runs list")


@as_root
@pytest.mark.parametrize("command", ["machines list", "doctor", "runs list", "--version"])
def test_without_home_and_account_it_says_what_to_set(cli: Cli, command: str):
    other = ["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups"]
    done = subprocess.run(
        [*other, COMMAND, *command.split()],
        env={"PATH": os.environ["PATH"]},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if command == "--version":
        assert done.returncode == 0
    else:
        assert refusal(done.stderr) == (
            "vers-rlm-mcp: There is no place for the state: HOME is not set, and user 54321 has no "
            "account. Set VERS_RLM_STATE_DIR to a directory that you may write to."
        )


def modes(directory: Path) -> dict[str, int]:
    paths = [directory, *directory.iterdir(), *(directory / "runs").rglob("*")]
    return {str(path): stat.S_IMODE(path.stat().st_mode) for path in paths}


@pytest.mark.parametrize("mask", [0, 0o777])
def test_it_is_private_whatever_the_umask(cli: Cli, mask: int):
    model = cli.script("FINAL(exec('stat -c %a /workspace').strip())")
    done = subprocess.run(
        [COMMAND, "run", "-> mode", "--model", model],
        env=cli.environment,
        umask=mask,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for path, mode in modes(cli.state).items():
        assert mode == (0o700 if os.path.isdir(path) else 0o600), path  # noqa: PTH112


def test_one_that_was_open_to_others_is_closed_unless_it_holds_what_is_theirs(cli: Cli):
    cli.ok("machines", "list")
    cli.state.chmod(0o755)
    cli.ok("machines", "list")
    assert stat.S_IMODE(cli.state.stat().st_mode) == 0o700
    (cli.state / "theirs").touch()
    cli.state.chmod(0o755)
    cli.ok("machines", "list")
    assert stat.S_IMODE(cli.state.stat().st_mode) == 0o755
