"""The contract of machines, on the fake machine, on bubblewrap and on the example of a backend."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest
from directory_backend import DirectoryBackend

import vers_rlm_mcp
from vers_rlm_mcp.machines.bubblewrap import BubblewrapBackend
from vers_rlm_mcp.testing import CHECKS, Check, CheckFailed, FakeBackend

if TYPE_CHECKING:
    from vers_rlm_mcp.machines import Backend

SECONDS = 100
"""More than any check takes, less than pytest's own limit."""

ORDINARY_USER = 54321
"""An id without an account, a home or any right: nobody's files can be in its way."""


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One state directory for all checks: the first machine in a new one takes longer."""
    return tmp_path_factory.mktemp("state")


LARGE = {
    *("large_files_are_streamed", "unread_output_waits"),
    *("chains_can_be_long", "one_machine_can_be_snapshotted_often"),
}
"""Checks that move much data or make many machines."""


@pytest.mark.parametrize(
    "check",
    [
        pytest.param(check, id=check.name, marks=[pytest.mark.slow] * (check.name in LARGE))
        for check in CHECKS
    ],
)
@pytest.mark.parametrize("backend", [FakeBackend, BubblewrapBackend, DirectoryBackend])
async def test_every_backend_keeps_every_promise(
    check: Check, backend: type[FakeBackend | BubblewrapBackend | DirectoryBackend], state: Path
) -> None:
    directory = state / backend.__name__
    async with backend(directory) as opened:
        before = await ids(opened)
    with anyio.fail_after(SECONDS):
        await check(lambda: backend(directory))
    async with backend(directory) as opened:
        assert await ids(opened) <= before


async def test_copies_that_lose_their_programs_are_found_out(state: Path) -> None:
    def claims_to_copy_memory() -> BubblewrapBackend:
        backend = BubblewrapBackend(state / "BubblewrapBackend")
        backend.capabilities = replace(backend.capabilities, fidelity="memory")
        return backend

    (check,) = [check for check in CHECKS if check.name == "programs_keep_running_in_copies"]
    with pytest.raises(CheckFailed, match="the program does not run in"):
        await check(claims_to_copy_memory)


async def ids(backend: Backend) -> set[str]:
    return {found.id for found in (*await backend.list(), *await backend.commits())}


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests already run as an ordinary user")
@pytest.mark.timeout(600)
def test_bubblewrap_keeps_every_promise_for_an_ordinary_user() -> None:
    libraries = [Path(module.__file__ or "").parents[1] for module in (vers_rlm_mcp, anyio)]
    python = next(filter(_is_usable, (sys.executable, "/usr/bin/python3")), None)
    if python is None:
        pytest.skip("no Python of this version can be run by an ordinary user here")
    with tempfile.TemporaryDirectory() as home:
        os.chown(home, ORDINARY_USER, ORDINARY_USER)
        argv = [python, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
        result = subprocess.run(
            [*argv, f"--basetemp={home}/t", "-k", "BubblewrapBackend", __file__],
            user=ORDINARY_USER,
            group=ORDINARY_USER,
            extra_groups=[],
            env={
                "HOME": home,
                "PATH": os.environ["PATH"],
                "PYTHONPATH": os.pathsep.join(map(str, libraries)),
                "PYTHONDONTWRITEBYTECODE": "1",
            },
            cwd="/",
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
    assert result.returncode == 0, result.stdout


def test_every_check_says_what_it_promises() -> None:
    assert all(check.promise.endswith(".") for check in CHECKS)


def _is_usable(python: str) -> bool:
    """Whether an ordinary user may run this interpreter, and it is of the same version."""
    version = "import sys; print(sys.version_info[:2])"
    try:
        result = subprocess.run(
            [python, "-c", version],
            user=ORDINARY_USER,
            group=ORDINARY_USER,
            extra_groups=[],
            env={},
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return False
    return result.stdout.strip() == str(sys.version_info[:2])
