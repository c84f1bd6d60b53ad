"""What a machine may use, and that its neighbours and the host do not suffer when it wants more."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import anyio
import pytest

from vers_rlm_mcp.errors import MachineFull
from vers_rlm_mcp.machines import Machine, MachineSpec, run_command
from vers_rlm_mcp.machines.bubblewrap import BubblewrapBackend, BubblewrapConfig
from vers_rlm_mcp.machines.bubblewrap.limits import PREFIX, controllers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from conftest import Shell

SMALL = BubblewrapConfig(mem_size_mib=200, fs_size_mib=64, max_processes=320, vcpu_count=1)

HOG = "x = []\nwhile True: x.append(bytearray(10 << 20))"

BOMB = """
import os, time
for _ in range(2000):
    try:
        if os.fork() == 0:
            time.sleep(100)
    except OSError as error:
        print(type(error).__name__, flush=True)
        break
time.sleep(100)
"""


THREADS = """
import threading, time
while True:
    try:
        threading.Thread(target=time.sleep, args=[100], daemon=True).start()
    except RuntimeError as error:
        print(error, flush=True)
        break
time.sleep(100)
"""


@pytest.fixture(params=["cgroup", "watchdog"])
async def small(
    request: pytest.FixtureRequest, state: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Machine]:
    """A machine with little of everything, held by cgroups or without them."""
    if request.param == "watchdog":
        monkeypatch.setattr("vers_rlm_mcp.machines.bubblewrap.backend.controllers", tuple)
    async with BubblewrapBackend(state, SMALL) as backend:
        if request.param == "cgroup" and "cgroup" not in backend.capabilities.limits["memory"]:
            pytest.skip("this user cannot make cgroups here")
        machine = await backend.create()
        yield machine
        await machine.delete()


async def test_a_memory_hog_is_killed_and_the_machine_lives(small: Machine, sh: Shell) -> None:
    result = await run_command(small, ["python3", "-c", HOG], timeout=30)
    assert result.status is not None
    assert result.status.signal == 9
    if is_watched(small):
        assert "more than its 200 MiB of memory" in result.stderr.text
    assert await sh(small, "echo alive") == "alive\n"


def is_watched(machine: Machine) -> bool:
    return "watchdog" in machine.capabilities.limits["memory"]


@pytest.mark.parametrize("command", [
    "cat /dev/zero > big",
    "exec dd if=/dev/zero of=big bs=1M",
    "while head -c 4M /dev/zero >> $((i = i + 1)); do :; done; exit 1",
    "cp -r /usr/lib .",
    "python3 -c 'open(\"a\", \"wb\").write(bytes(100 << 20))'",
], ids=["cat", "dd", "many files", "cp", "python"])  # fmt: skip
async def test_a_command_that_fills_the_disk_is_refused_and_told_why(
    small: Machine, command: str
) -> None:
    result = await run_command(small, ["sh", "-c", command], timeout=60)
    assert result.status is not None
    assert result.status.signal != 9
    assert result.status.code != 0
    told = result.stderr.text
    assert "written all that it may" in told or "no file may be larger" in told or "large" in told


async def test_a_fork_bomb_ends_at_the_limit(small: Machine, sh: Shell) -> None:
    async with AsyncExitStack() as stack:
        process = await stack.enter_async_context(await small.spawn(["python3", "-c", BOMB]))
        with anyio.fail_after(30):
            assert await process.stdout.receive() == b"BlockingIOError\n"
        with pytest.raises(MachineFull, match="limit"):
            await _spawn_many(small, stack)
    assert await sh(small, "echo alive") == "alive\n"


async def test_a_machine_full_of_processes_says_so_and_can_be_told_to_end_them(
    small: Machine, sh: Shell
) -> None:
    async with await small.spawn(["python3", "-c", BOMB]) as bomb:
        with anyio.fail_after(30):
            assert await bomb.stdout.receive() == b"BlockingIOError\n"
            seen = ""
            while "304 of the 304 processes and threads" not in seen:  # one may just be ending
                seen = await sh(small, "echo alive; (echo forked)")
            assert seen.startswith("alive\n")
            assert "`kill -9 -1`" in seen
            assert "forked" not in seen
            await run_command(small, ["sh", "-c", "kill -9 -1"], timeout=10)
            while (seen := await sh(small, "(echo forked)")) != "forked\n":
                assert "ork" in seen  # What was killed takes a moment to be gone.


async def test_threads_count_as_processes(small: Machine, sh: Shell) -> None:
    async with await small.spawn(["python3", "-c", THREADS]) as bomb:
        with anyio.fail_after(30):
            assert await bomb.stdout.receive() == b"can't start new thread\n"
            assert "of the 304 processes" in await sh(small, "true")
    assert await sh(small, "(echo forked)") == "forked\n"


async def _spawn_many(machine: Machine, stack: AsyncExitStack) -> None:
    for _ in range(SMALL.max_processes):
        await stack.enter_async_context(await machine.spawn(["sleep", "100"], cwd="/"))


async def test_a_full_disk_stops_writing_and_not_the_machine(small: Machine, sh: Shell) -> None:
    script = "i=0; while head -c 4M /dev/zero > f$i; do i=$((i+1)); done 2>&1; echo stopped"
    with anyio.fail_after(30):
        seen = await sh(small, script)
        assert seen.endswith("stopped\n")
        with pytest.raises(MachineFull, match="delete files"):
            await small.write("/workspace/more", b"x")
        with pytest.raises(MachineFull, match="for good: delete files in it first"):
            await small.snapshot()
        await sh(small, "rm f*")
        while True:
            try:
                await small.write("/workspace/more", b"x")
                break
            except MachineFull:
                await anyio.sleep(0.05)


async def test_what_many_write_at_once_is_refused_to_each_and_kills_none(small: Machine) -> None:
    write = "(head -c 16M /dev/zero > f$i.$j 2>/dev/null || echo refused) &"
    script = f"for i in $(seq 60); do for j in 1 2 3 4; do {write} done; wait; done; echo alive"
    result = await run_command(small, ["sh", "-c", script], timeout=60)
    assert result.status is not None
    assert result.status.code == 0
    seen = result.stdout.text.splitlines()
    assert seen.count("refused") > 100
    assert seen[-1] == "alive"


async def test_a_write_without_room_leaves_the_old_file(small: Machine, sh: Shell) -> None:
    await small.write("/workspace/file", b"old")
    with pytest.raises(MachineFull):
        await small.write("/workspace/file", bytes(80 << 20))
    assert (await sh(small, "ls -A; cat file")).startswith("file\nold")


async def test_what_is_frozen_in_commits_counts_as_written(state: Path, sh: Shell) -> None:
    async with BubblewrapBackend(state, SMALL) as backend:
        machine = await backend.create()
        await sh(machine, "head -c 40M /dev/zero > big")
        await machine.snapshot()
        await sh(machine, "head -c 40M /dev/zero > big")
        with anyio.fail_after(30):
            seen = ""
            while "frozen" not in seen:
                seen = await sh(machine, "true")
        assert "40 of them are frozen in commits" in seen
        with pytest.raises(MachineFull, match="from an earlier commit"):
            await machine.write("/workspace/more", b"x")
        await machine.delete()


HOLDER = """
import mmap, os, time
with open("mapped", "w+b") as file:
    file.truncate(4096)
    kept = mmap.mmap(file.fileno(), 4096)
os.unlink("mapped")
print("ready", flush=True)
time.sleep(1000)
"""


@pytest.mark.slow
async def test_copies_for_commits_do_not_count_as_hidden_files(state: Path, sh: Shell) -> None:
    async with BubblewrapBackend(state, SMALL) as backend:
        machine = await backend.create()
        await sh(machine, "head -c 20M /dev/zero > big")
        async with await machine.spawn(["python3", "-c", HOLDER]) as holder:
            assert await holder.stdout.receive() == b"ready\n"
            for _ in range(5):
                assert (await machine.snapshot()).notes  # It was copied: 20 MiB.
                assert await sh(machine, "sleep 1.1; echo free") == "free\n"
        await machine.delete()


async def test_files_without_content_are_bounded_too(state: Path, sh: Shell) -> None:
    make = "n = 0\nwhile True: open(str(n), 'w').close(); n += 1"
    async with BubblewrapBackend(state, BubblewrapConfig(fs_size_mib=16)) as backend:
        machine = await backend.create()
        result = await run_command(machine, ["python3", "-c", make], timeout=60)
        assert result.status is not None
        assert result.status.signal == 9
        assert "the machine has written all that it may" in result.stderr.text
        assert (await sh(machine, "echo alive")).startswith("alive\n")
        await machine.delete()


@pytest.mark.slow  # it takes long to make and to remove
async def test_a_tree_of_many_levels_is_counted(machine: Machine, sh: Shell) -> None:
    make = "import os\nfor _ in range(20000): os.mkdir('d'); os.chdir('d')"
    assert await sh(machine, f'python3 -c "{make}"; sleep 2; echo made') == "made\n"
    assert await sh(machine, "echo counted") == "counted\n"
    await machine.write("/workspace/more", b"x")


async def test_one_file_cannot_be_larger_than_the_disk(small: Machine, sh: Shell) -> None:
    assert await sh(small, "truncate -s 1G big 2>/dev/null || echo refused") == "refused\n"


async def test_memory_file_systems_are_bounded(small: Machine, sh: Shell) -> None:
    seen = await sh(small, "head -c 1G /dev/zero > /dev/shm/x; rm /dev/shm/x; echo; echo alive")
    assert "No space left" in seen
    assert seen.split()[0] == "alive" or "alive" in seen


async def test_a_spec_goes_before_the_settings(state: Path, sh: Shell) -> None:
    async with BubblewrapBackend(state, SMALL) as backend:
        machine = await backend.create(MachineSpec(fs_size_mib=128))
        assert await sh(machine, "truncate -s 100M big && stat -c %s big") == f"{100 << 20}\n"
        copy = (await machine.branch())[0]
        assert (await copy.info()).spec == MachineSpec(fs_size_mib=128)
        await copy.delete()
        await machine.delete()


async def test_a_million_lines_of_processes_do_not_stop_a_kill(machine: Machine) -> None:
    script = "for i in $(seq 100); do (setsid sleep 1000 &); sleep 1000 & done; echo ready; wait"
    async with await machine.spawn(["sh", "-c", script]) as process:
        with anyio.fail_after(20):
            assert await process.stdout.receive() == b"ready\n"
            await process.kill()
            assert (await process.wait()).signal == 9
    found = await run_command(machine, ["pgrep", "-c", "sleep"], timeout=10)
    assert int(found.stdout.text) <= 100


@pytest.fixture
def groups(tmp_path: Path) -> Iterator[list[Path]]:
    """Three cgroups that name machines: one made long ago, a new one, and an old one in use."""
    available = controllers()
    if not available:
        pytest.skip("this user cannot make cgroups here")
    made = [available[0].parent / f"{PREFIX}{tmp_path.name}-{name}" for name in ("a", "b", "c")]
    for directory in made:
        directory.mkdir()
    with subprocess.Popen(["sleep", "100"]) as user:
        (made[2] / "cgroup.procs").write_text(str(user.pid))
        for directory in (made[0], made[2]):
            os.utime(directory, (0, 0))
        yield made
        user.kill()
    for directory in made:
        with contextlib.suppress(FileNotFoundError):
            directory.rmdir()


async def test_a_start_sweeps_the_cgroups_of_dead_servers_and_no_others(
    groups: list[Path], state: Path
) -> None:
    async with BubblewrapBackend(state) as backend:
        await (await backend.create()).delete()
    assert [directory.exists() for directory in groups] == [False, True, True]


UNDER_LIMITS = """
import anyio, resource, signal, sys
from pathlib import Path
from vers_rlm_mcp.machines import run_command
from vers_rlm_mcp.machines.bubblewrap import BubblewrapBackend
from vers_rlm_mcp.machines.bubblewrap.probe import probe

async def main():
    findings = await probe(Path(sys.argv[2]))
    assert all(finding.ok and finding.text for finding in findings), findings
    print([finding.text for finding in findings if finding.name not in USUAL])
    async with BubblewrapBackend(Path(sys.argv[2])) as backend:
        machine = await backend.create()
        result = await run_command(machine, ["sh", "-c", "sleep 0.1; echo ran"], timeout=20)
        print(result.stdout.text, result.stderr.text)
        await machine.snapshot()
        await machine.delete()

LIMITS = ("memory", "processes", "cpu", "disk")
USUAL = {"kernel", "python", "machine", *map("limit of {}".format, LIMITS)}
exec(sys.argv[1])
anyio.run(main)
"""


INHERITED = {
    "core": "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))",
    "file size": "resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 20, 64 << 20))",
    "processes": "resource.setrlimit(resource.RLIMIT_NPROC, (400, 400))",
    "files": "resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))",
    "children ignored": "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    "signals blocked": "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 64))",
}


@pytest.mark.parametrize("what", INHERITED)
async def test_commands_run_under_whatever_the_server_was_started_with(
    tmp_path: Path, what: str
) -> None:
    if not os.access(sys.executable, os.X_OK):
        pytest.skip("this user cannot run this Python")
    argv = [sys.executable, "-c", UNDER_LIMITS, INHERITED[what], str(tmp_path)]
    with anyio.fail_after(30):
        done = await anyio.run_process(argv, check=False)
    assert b"ran\n" in done.stdout, done.stdout + done.stderr
    if what == "file size":
        assert b"67,108,864 bytes, the hard limit of this process" in done.stdout
