"""`Machines` on bubblewrap."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vers_rlm_mcp import Machines
from vers_rlm_mcp.errors import InputError, MachineGone, UnknownHandle
from vers_rlm_mcp.testing import FakeBackend

if TYPE_CHECKING:
    from pathlib import Path


def opened(tmp_path: Path) -> Machines:
    return Machines(backend="bubblewrap", state_dir=tmp_path / "state", fs_size_mib=512)


async def test_a_machine_runs_commands_keeps_files_and_is_branched(tmp_path: Path) -> None:
    async with opened(tmp_path) as machines:
        vm = await machines.create()
        assert await vm.write("a.txt", "grüße\n") == 8
        result = await vm.exec("cat a.txt; echo bad >&2; exit 3")
        assert (result.stdout, result.stderr, result.exit_code) == ("grüße\n", "bad\n", 3)
        commit = await vm.snapshot()
        a, b = await vm.branch(2)
        await a.write("a.txt", b"\x00\xff")
        assert await a.read("a.txt") == b"\x00\xff"
        assert await b.read("/workspace/a.txt") == "grüße\n".encode()
        await vm.delete()
        with pytest.raises((MachineGone, UnknownHandle)):
            await vm.exec("true")
        restored = await machines.restore(commit.id)
        assert await restored.read("a.txt", offset=-2, length=1) == b"e"
        assert {each.id for each in await machines.list()} == {a.id, b.id, restored.id}
        assert [each.id for each in await machines.commits()] == [commit.id]


async def test_code_runs_in_a_repl_whose_variables_a_branch_has_too(tmp_path: Path) -> None:
    async with opened(tmp_path) as machines:
        vm = await machines.create()
        assert (await vm.python("x = 6")).status == "ok"
        (copy,) = await vm.branch()
        assert (await copy.python("x * 7")).output == "42\n"
        failed = await vm.python("1 / 0")
        assert failed.status == "error"
        assert "ZeroDivisionError" in (failed.error or "")


async def test_a_command_over_its_time_limit_has_no_exit_code(tmp_path: Path) -> None:
    async with opened(tmp_path) as machines:
        vm = await machines.create()
        assert (await vm.exec("sleep 60", timeout=0.3)).exit_code is None
        assert (await vm.exec("kill -9 $$")).exit_code == 137


async def test_machines_end_with_the_program_unless_they_are_kept(tmp_path: Path) -> None:
    async with opened(tmp_path) as machines:
        await machines.create()
        kept = await machines.create(keep=True)
        await kept.write("note", "still here")
    async with opened(tmp_path) as machines:
        assert [each.id for each in await machines.list()] == [kept.id]
        vm = await machines.attach(kept.id)
        assert await vm.read("note") == b"still here"
        await vm.delete()
        with pytest.raises(UnknownHandle):
            await machines.attach("vm-of-nobody")


async def test_a_file_too_large_to_read_at_once_is_read_in_pieces(tmp_path: Path) -> None:
    async with opened(tmp_path) as machines:
        vm = await machines.create()
        await vm.exec("truncate -s 65M big")
        with pytest.raises(InputError, match="larger than 64 MiB; read it in pieces"):
            await vm.read("big")
        assert len(await vm.read("big", offset=60 << 20, length=10 << 20)) == 5 << 20


async def test_machines_may_come_from_a_backend_of_ones_own(tmp_path: Path) -> None:
    backend = FakeBackend(tmp_path / "machines")
    async with Machines(backend=backend, state_dir=tmp_path / "state") as machines:
        vm = await machines.create()
        assert (await vm.exec("echo here")).stdout == "here\n"
        assert [each.backend for each in await machines.list()] == [backend.name]
    assert await FakeBackend(tmp_path / "machines").list() == []
