"""Bounded commands and file transfers, on the fake machine."""

from __future__ import annotations

import os
import time
import tracemalloc
from typing import TYPE_CHECKING

import anyio
import pytest

from vers_rlm_mcp.errors import InputError, PathRefused
from vers_rlm_mcp.machines import Captured, Machine, read_bytes, run_command, shell, upload
from vers_rlm_mcp.testing import FakeBackend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

MIB = 1024 * 1024


@pytest.fixture
async def machine() -> AsyncIterator[Machine]:
    async with FakeBackend() as backend:
        yield await backend.create()


async def text(machine: Machine, path: str) -> str:
    return (await read_bytes(machine, path, length=1000)).decode()


async def runs(machine: Machine, pid: int) -> bool:
    result = await run_command(machine, ["cat", f"/proc/{pid}/stat"], timeout=5)
    return result.stdout.total > 0 and ") Z " not in result.stdout.text


async def ends(machine: Machine, pid: int) -> bool:
    """Whether a process ends within a few seconds."""
    for _ in range(100):
        if not await runs(machine, pid):
            return True
    return False


async def test_a_command_gives_both_outputs_and_its_exit_code(machine: Machine) -> None:
    result = await run_command(machine, "echo out; echo err >&2; exit 7", timeout=10)
    assert result.stdout.text == "out\n"
    assert result.stderr.text == "err\n"
    assert result.status is not None
    assert (result.status.code, result.status.signal) == (7, None)


async def test_a_command_that_dies_by_a_signal_says_which(machine: Machine) -> None:
    result = await run_command(machine, "kill -9 $$", timeout=10)
    assert result.status is not None
    assert (result.status.code, result.status.signal) == (None, 9)


async def test_standard_input_arrives_whole_and_ends(machine: Machine) -> None:
    data = os.urandom(MIB)
    result = await run_command(machine, ["cat"], stdin=data, timeout=10, limit=2 * MIB)
    assert result.stdout.data == data


async def test_a_command_need_not_read_its_input(machine: Machine) -> None:
    result = await run_command(machine, "true", stdin=bytes(10 * MIB), timeout=10)
    assert result.status is not None
    assert result.status.ok


async def test_a_shell_command_is_not_changed_on_its_way(machine: Machine) -> None:
    result = await run_command(machine, 'printf %s \'$(id) `id` "x"\n\'; echo "$0"', timeout=10)
    assert result.stdout.text.startswith('$(id) `id` "x"\n')


async def test_a_shell_command_may_start_with_a_dash(machine: Machine) -> None:
    result = await run_command(machine, "-x", timeout=10)
    assert result.status is not None
    assert result.status.code == 127
    assert "-x: command not found" in result.stderr.text


async def test_the_shell_is_sh_where_there_is_no_bash(machine: Machine) -> None:
    await run_command(machine, "mkdir bin && ln -s /bin/sh bin/sh", timeout=10)
    result = await run_command(
        machine, "echo ${BASH_VERSION:-no bash}", env={"PATH": "/workspace/bin"}, timeout=10
    )
    assert result.stdout.text == "no bash\n"


async def test_variables_and_the_working_directory_reach_the_command(machine: Machine) -> None:
    await machine.write("/workspace/deep/er/file", b"found")
    result = await run_command(
        machine,
        'cat file; echo " $COLOUR"',
        env={"COLOUR": "a b"},
        cwd="/workspace/deep/er",
        timeout=10,
    )
    assert result.stdout.text == "found a b\n"


async def test_a_time_out_kills_the_command_and_its_children(machine: Machine) -> None:
    command = "trap '' TERM; sleep 1000 & echo $! > child; wait"
    result = await run_command(machine, command, timeout=0.5)
    assert result.status is None
    assert result.seconds < 5
    assert await ends(machine, int(await text(machine, "/workspace/child")))


async def test_output_before_a_time_out_is_kept(machine: Machine) -> None:
    result = await run_command(machine, "echo early; sleep 1000", timeout=0.5)
    assert result.stdout.text == "early\n"


async def test_a_background_process_outlives_the_command_and_does_not_hold_it(
    machine: Machine,
) -> None:
    with anyio.fail_after(10):
        result = await run_command(machine, "sleep 1000 & echo $!", timeout=60)
    assert result.status is not None
    assert result.status.ok
    assert result.seconds < 2
    assert await runs(machine, int(result.stdout.text))


async def test_a_noisy_background_process_is_left_after_a_bounded_time(machine: Machine) -> None:
    with anyio.fail_after(20):
        result = await run_command(machine, "yes & true", timeout=60, limit=100)
    assert result.status is not None
    assert len(result.stdout.data) == 100


async def test_cancelling_a_command_kills_it_within_a_second(machine: Machine) -> None:
    await run_command(machine, ["mkfifo", "started"], timeout=10)
    pid, cancelled = 0, 0.0
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_for_ever, machine)
        result = await run_command(machine, "cat started", timeout=10)
        pid, cancelled = int(result.stdout.text), time.monotonic()
        tasks.cancel_scope.cancel()
    assert time.monotonic() - cancelled < 1
    assert await ends(machine, pid)


async def run_for_ever(machine: Machine) -> None:
    await run_command(machine, "echo $$ > started; sleep 1000", timeout=1000)


async def test_one_line_of_200_megabytes_is_kept_in_constant_memory(machine: Machine) -> None:
    command = "printf start; head -c 200000000 /dev/zero; printf end"
    tracemalloc.start()
    try:
        result = await run_command(machine, command, timeout=60, limit=1000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert result.stdout.total == 200_000_008
    assert result.stdout.omitted == 199_999_008
    assert result.stdout.data.startswith(b"start\0")
    assert result.stdout.data.endswith(b"\0end")
    assert len(result.stdout.data) == 1000
    assert peak < 4 * MIB


def test_what_was_left_out_is_said_where_it_was() -> None:
    captured = Captured(b"ab", b"yz", 1_000_004)
    assert captured.text == "ab\n… 1,000,000 bytes left out …\nyz"


def test_output_that_is_not_utf8_still_becomes_text() -> None:
    assert Captured(b"\xff\xfe!", b"", 3).text == "\ufffd\ufffd!"


async def test_output_as_long_as_the_limit_is_whole(machine: Machine) -> None:
    result = await run_command(machine, "printf 1234567", timeout=10, limit=7)
    assert result.stdout.data == b"1234567"
    assert result.stdout.omitted == 0


@pytest.mark.parametrize("command", ["x" * 200_000, "a\0b"], ids=["too long", "with a NUL"])
async def test_a_command_that_cannot_be_started_is_refused(machine: Machine, command: str) -> None:
    with pytest.raises(InputError):
        await run_command(machine, command, timeout=10)


def test_the_command_is_an_argument_of_the_shell_and_no_part_of_its_script() -> None:
    assert shell("rm '$x'")[-1] == "rm '$x'"
    assert "rm" not in " ".join(shell("rm '$x'")[:-1])


async def test_reading_bytes_stops_at_the_length(machine: Machine) -> None:
    await machine.write("/workspace/file", b"0123456789")
    assert await read_bytes(machine, "/workspace/file", offset=2, length=3) == b"234"
    assert await read_bytes(machine, "/workspace/file", offset=-2, length=100) == b"89"


async def test_a_host_file_is_uploaded_byte_for_byte(machine: Machine, tmp_path: Path) -> None:
    source = tmp_path / "data"
    source.write_bytes(os.urandom(3 * MIB + 1))
    assert await upload(machine, source, "/workspace/in/data") == 3 * MIB + 1
    content = await read_bytes(machine, "/workspace/in/data", length=4 * MIB)
    assert content == source.read_bytes()


async def test_an_open_descriptor_is_uploaded_and_closed(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"content")
    descriptor = os.open(tmp_path / "data", os.O_RDONLY | os.O_NOFOLLOW)
    assert await upload(machine, descriptor, "/workspace/data") == 7
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


async def test_only_regular_host_files_are_uploaded(machine: Machine, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with anyio.fail_after(5):
        for source in (tmp_path / "fifo", tmp_path, tmp_path / "missing"):
            with pytest.raises(PathRefused, match=source.name):
                await upload(machine, source, "/workspace/data")
