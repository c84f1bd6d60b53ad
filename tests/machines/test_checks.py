"""The checks themselves: a backend that breaks a promise is found out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from vers_rlm_mcp.errors import VersRlmError
from vers_rlm_mcp.machines import ExitStatus
from vers_rlm_mcp.testing import CHECKS, CheckFailed, FakeBackend, FakeMachine, FakeProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from vers_rlm_mcp.machines import MachineInfo

NAMELESS_BACKEND = """
from vers_rlm_mcp.testing import FakeBackend

class Nameless(FakeBackend):
    name = "mine"
"""

BY_NAME = {check.name: check for check in CHECKS}


async def kill_the_leader_only(process: FakeProcess) -> None:
    host_process: Any = getattr(process, "_process")  # noqa: B009 - private, to break it
    if host_process.returncode is None:
        os.kill(host_process.pid, signal.SIGKILL)


async def one_exit_code(process: FakeProcess, wait: Any = FakeProcess.wait) -> ExitStatus:
    status = await wait(process)
    return status if status.ok else ExitStatus(1)


async def ignore_the_offset(
    machine: FakeMachine, path: str, *, read: Any = FakeMachine.read, **_: object
) -> object:
    return await read(machine, path)


async def add_a_newline(
    machine: FakeMachine, path: str, data: bytes, *, write: Any = FakeMachine.write, **_: object
) -> int:
    return await write(machine, path, data + b"\n")


async def quote_like_json(
    machine: FakeMachine, path: str, *, read: Any = FakeMachine.read, **slices: object
) -> object:
    return await read(machine, path.replace("$", "\\$"), **slices)


async def newest_first(
    backend: FakeBackend, list_: Any = FakeBackend.list
) -> Sequence[MachineInfo]:
    return list(reversed(await list_(backend)))


async def forget_labels(
    backend: FakeBackend, spec: Any, _: object, *rest: object, make: Any = FakeBackend.make
) -> FakeMachine:
    return await make(backend, spec, None, *rest)


async def leave_half_made_machines(
    backend: FakeBackend, *arguments: Any, make: Any = FakeBackend.make
) -> FakeMachine:
    machine = await make(backend, *arguments)
    await anyio.sleep(0.015)
    return machine


async def share_the_tree(
    backend: FakeBackend,
    source: Path | None,
    target: Path,
    about: dict[str, Any],
    place: Any = FakeBackend.place,
) -> None:
    await place(backend, None, target, about)
    if source is not None:
        (target / "root" / "workspace").rmdir()
        (target / "root" / "workspace").symlink_to(source / "workspace")


def never_gone(_: FakeMachine) -> None:
    return


BROKEN: Sequence[tuple[str, object, str, Callable[..., object]]] = [
    ("killing_includes_children", FakeProcess, "kill", kill_the_leader_only),
    ("exit_codes_are_reported", FakeProcess, "wait", one_exit_code),
    ("slices_are_exact", FakeMachine, "read", ignore_the_offset),
    ("content_is_exact", FakeMachine, "write", add_a_newline),
    ("names_are_only_names", FakeMachine, "read", quote_like_json),
    ("machines_are_listed_oldest_first", FakeBackend, "list", newest_first),
    ("branches_are_independent", FakeBackend, "make", forget_labels),
    ("cancelled_making_leaves_nothing", FakeBackend, "make", leave_half_made_machines),
    ("commits_do_not_change", FakeBackend, "place", share_the_tree),
    ("a_deleted_machine_is_gone", FakeMachine, "_check", never_gone),
]


@pytest.mark.parametrize(
    ("name", "owner", "attribute", "broken"), BROKEN, ids=[row[3].__name__ for row in BROKEN]
)
async def test_a_backend_that_breaks_a_promise_fails_its_check(
    name: str,
    owner: object,
    attribute: str,
    broken: Callable[..., object],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(owner, attribute, broken)
    with pytest.raises((CheckFailed, VersRlmError)):
        await BY_NAME[name](lambda: FakeBackend(tmp_path))


async def test_what_a_failed_check_made_is_removed(tmp_path: Path) -> None:
    async with FakeBackend(tmp_path) as backend:
        mine = await backend.create()
        for check in CHECKS[:3]:
            await check(lambda: FakeBackend(tmp_path))
        assert [info.id for info in await backend.list()] == [mine.id]


def run_checks(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "vers_rlm_mcp.testing", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)


def test_checks_are_run_from_a_terminal() -> None:
    fake = "vers_rlm_mcp.testing:FakeBackend"
    result = run_checks(fake, "slices_are_exact", "programs_keep_running_in_copies")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "passed   slices_are_exact",
        "skipped  programs_keep_running_in_copies: its copies carry only the disk",
    ]


def test_a_broken_promise_is_printed_with_what_was_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(NAMELESS_BACKEND)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    result = run_checks("mine:Nameless", "a_new_machine_is_described")
    assert result.returncode == 1
    assert result.stdout == (
        "FAILED   a_new_machine_is_described: A new machine describes itself, labels included, and "
        "is listed. its backend: wanted 'mine', got 'fake'\n"
    )


def test_an_unknown_check_is_refused() -> None:
    result = run_checks("vers_rlm_mcp.testing:FakeBackend", "no_such_check")
    assert result.returncode == 2
    assert "no such check: no_such_check" in result.stderr
