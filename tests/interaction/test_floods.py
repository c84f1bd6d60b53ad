"""Output, files and lines of a gigabyte: the server's memory does not see them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import users

if TYPE_CHECKING:
    from users import User

pytestmark = pytest.mark.slow

GIB = 1 << 30
FLAT = 96
"""MiB by which the server's memory may grow; a gigabyte would be ten times as much."""


@pytest.fixture
async def machine(user: User):
    vm_id = (await user.call("vmCreate"))["vm_id"]
    yield vm_id
    await user.call("vmDelete", vmId=vm_id)


@pytest.mark.parametrize(
    "command", ["head -c 1G /dev/zero | tr '\\0' x", "yes | head -c 1G"], ids=["one line", "lines"]
)
async def test_a_gigabyte_from_a_command_is_cut_and_the_cut_is_said(
    user: User, machine: str, command: str
):
    before = users.high_water(user.pid)
    result = await user.call("exec", command=command, timeout=60)
    assert result["exit_code"] == 0
    assert len(result["stdout"]) < 100_000
    assert "bytes left out" in result["stdout"]
    assert users.high_water(user.pid) - before < FLAT


@pytest.mark.parametrize(
    "code",
    [
        "part = 'x' * (1 << 20)\nfor _ in range(1024): print(part, end='')",
        "part = 'y\\n' * (1 << 19)\nfor _ in range(1024): print(part)",
        "r = exec('head -c 1G /dev/zero')\nprint(len(r.stdout))",
    ],
    ids=["one line", "lines", "exec in a cell"],
)
async def test_a_gigabyte_from_a_cell_is_cut_and_the_cut_is_said(
    user: User, machine: str, code: str
):
    before = users.high_water(user.pid)
    result = await user.call("python", code=code, timeout=60)
    assert result["status"] == "ok", result
    assert len(result["output"]) < 100_000
    assert users.high_water(user.pid) - before < FLAT


async def test_a_gigabyte_from_the_cell_of_a_run_neither_ends_it_nor_fills_the_journal(user: User):
    before = users.high_water(user.pid)
    code = "part = 'x' * (1 << 20)\nfor _ in range(1024): print(part, end='')"
    result = await user.run(code, "FINAL('done')")
    assert result["outputs"] == {"answer": "done"}
    journal = user.state / "runs" / result["run_id"]
    assert sum(path.stat().st_size for path in journal.rglob("*") if path.is_file()) < 8 << 20
    assert users.high_water(user.pid) - before < FLAT


async def test_a_file_of_a_gigabyte_goes_into_a_machine_and_not_into_the_servers_memory(
    user: User,
):
    big = user.allowed / "big"
    with big.open("wb") as file:
        file.truncate(GIB)
        file.seek(-4, os.SEEK_END)
        file.write(b"tail")
    before = users.high_water(user.pid)
    code = "FINAL(exec('stat -c %s files/big; tail -c 4 files/big').stdout)"
    result = await user.run(code, files=[str(big)])
    assert result["outputs"] == {"answer": f"{GIB}\ntail"}
    assert users.high_water(user.pid) - before < FLAT
    big.unlink()


async def test_an_answer_of_a_hundred_megabytes_is_cut_and_not_lost(user: User):
    before = users.high_water(user.pid)
    result = await user.run("FINAL('x' * (100 << 20))", "FINAL('short')")
    assert result["status"] == "finished", result
    assert len(str(result)) < 200_000
    assert users.high_water(user.pid) - before < 1024


@pytest.mark.parametrize("value", ["list(range(300_000))", "{'a': 'x' * 2_000_000}"])
async def test_a_large_answer_that_is_no_text_is_cut_as_well(user: User, value: str):
    user.write_script(f"FINAL({value})", "FINAL('short')")
    result = await user.tool("vers_rlm", signature="-> answer: any")
    assert not result.is_error
    assert len(users.text_of(result)) < 100_000
    assert len(str(result.structured_content)) < 100_000
