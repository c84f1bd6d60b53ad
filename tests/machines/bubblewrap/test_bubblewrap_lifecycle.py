"""What a machine leaves behind: nothing when it is deleted, all its files when its server dies."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream

from vers_rlm_mcp.errors import MachineError, MachineGone, UnknownHandle
from vers_rlm_mcp.machines import read_bytes
from vers_rlm_mcp.machines.bubblewrap import BubblewrapBackend
from vers_rlm_mcp.machines.daemon.guest.frames import REPORT

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Shell

    from vers_rlm_mcp.machines import Machine

SERVER = """
import sys, anyio
from pathlib import Path
from vers_rlm_mcp.machines.bubblewrap import BubblewrapBackend

async def main():
    backend = BubblewrapBackend(Path(sys.argv[1]))
    machine = await backend.create(labels={"purpose": "survive"})
    await machine.write("/workspace/file", b"durable")
    commit = await machine.snapshot()
    await machine.write("/workspace/late", b"also")
    await machine.spawn(["sleep", "7654321"])
    print(machine.id, commit.id, flush=True)
    await anyio.sleep_forever()

anyio.run(main)
"""


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A directory of its own for each test: what is left behind is counted."""
    return tmp_path


def processes(command: str) -> set[int]:
    """The host's processes whose command line holds a text."""
    found: set[int] = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and entry.name != str(os.getpid()):
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if command.encode() in line:
                found.add(int(entry.name))
    return found


async def until(holds: Callable[[], bool]) -> None:
    with anyio.fail_after(10):
        while not holds():  # noqa: ASYNC110 - the host tells of no process's end
            await anyio.sleep(0.01)


def everything(state: Path) -> set[Path]:
    """What the machines of a state directory consist of."""
    parts = ("machines", "commits", "layers", "trash")
    return {path for part in parts for path in (state / "bubblewrap" / part).iterdir()}


def mounts() -> set[str]:
    return set(Path("/proc/self/mountinfo").read_text().splitlines())


def open_descriptors() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def cgroups(machine: Machine) -> set[Path]:
    name = machine.id.replace("bw-", "vers-rlm-machine-")
    found = os.walk("/sys/fs/cgroup")  # Others make and remove theirs meanwhile.
    return {Path(place, name) for place, names, _ in found if name in names}


async def test_deleting_leaves_nothing(backend: BubblewrapBackend, state: Path, sh: Shell) -> None:
    await (await backend.create()).delete()  # A backend keeps what its machines start from.
    before = everything(state), mounts()
    descriptors = open_descriptors()
    machine = await backend.create()
    await sh(machine, "mkdir -p a/b; echo x > a/b/c; chmod 000 a/b a; setsid sleep 876543 &")
    await machine.write("/tmp/file", b"1")
    commit = await machine.snapshot()
    await sh(machine, "d=x; for i in $(seq 60); do mkdir $(printf 'y%.0s' $(seq 200)); cd y*; done")
    (branch,) = await machine.branch()
    assert processes("876543")
    await machine.delete()
    await branch.delete()
    await backend.delete_commit(commit.id)
    assert processes("876543") == set()
    assert (everything(state), mounts()) == before
    assert cgroups(machine) | cgroups(branch) == set()
    assert open_descriptors() <= descriptors


async def test_shared_layers_stay_until_the_last_user_is_gone(
    backend: BubblewrapBackend, state: Path
) -> None:
    machine = await backend.create()
    await machine.write("/workspace/file", b"1")
    commit = await machine.snapshot()
    (branch,) = await machine.branch()
    await machine.delete()
    await backend.delete_commit(commit.id)
    assert await read_bytes(branch, "/workspace/file", length=9) == b"1"
    assert [*(state / "bubblewrap" / "layers").iterdir()]
    await branch.delete()
    assert [*(state / "bubblewrap" / "layers").iterdir()] == []


async def test_a_dead_server_takes_its_processes_along_and_leaves_its_files(
    state: Path, sh: Shell
) -> None:
    if not os.access(sys.executable, os.X_OK):
        pytest.skip("this user cannot run this Python")
    async with await anyio.open_process([sys.executable, "-c", SERVER, str(state)]) as server:
        assert server.stdout
        try:
            with anyio.fail_after(30):
                lines = BufferedByteReceiveStream(server.stdout)
                told = await lines.receive_until(b"\n", 1000)
            machine_id, commit_id = told.decode().split()
            assert processes("7654321")
            async with BubblewrapBackend(state) as other:
                assert next(i for i in await other.list() if i.id == machine_id).running
                with pytest.raises(MachineError, match=f"runs under process {server.pid}"):
                    await other.attach(machine_id)
                with pytest.raises(MachineError, match=f"runs under process {server.pid}"):
                    await other.delete(machine_id)
        finally:
            server.send_signal(signal.SIGKILL)
    await until(lambda: not processes("7654321"))
    async with BubblewrapBackend(state) as backend:
        info = next(i for i in await backend.list() if i.id == machine_id)
        assert (info.running, dict(info.labels)) == (False, {"purpose": "survive"})
        machine = await backend.attach(machine_id)
        assert await sh(machine, "cat file late") == "durablealso"
        restored = await backend.restore(commit_id)
        assert await sh(restored, "cat *") == "durable"
        for found in (machine, restored):
            await found.delete()
            assert cgroups(found) == set()
        await backend.delete_commit(commit_id)


async def test_what_is_seen_no_more_of_a_dead_server_may_still_be_ending(
    backend: BubblewrapBackend, state: Path
) -> None:
    async with BubblewrapBackend(state) as other:
        machine = await other.create()
    # A process that ends has no descriptors any more when the lock is let go; nor is one that is
    # on its way through a socket any process's.
    lock = os.open(state / "bubblewrap" / "machines" / machine.id / "lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.truncate(lock, 0)
    ends = socket.socketpair()
    with ends[0], ends[1]:
        socket.send_fds(ends[0], [b"x"], [lock])
        os.close(lock)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(backend.delete, machine.id)
            await anyio.wait_all_tasks_blocked()
            ends[1].close()
    assert machine.id not in {info.id for info in await backend.list()}


async def test_closing_the_backend_ends_processes_and_keeps_files(state: Path, sh: Shell) -> None:
    async with BubblewrapBackend(state) as backend:
        machine = await backend.create()
        await machine.write("/workspace/file", b"kept")
        await machine.spawn(["sleep", "5555555"])
    assert processes("5555555") == set()
    with pytest.raises(MachineGone):
        await machine.spawn(["true"])
    async with BubblewrapBackend(state) as backend:
        again = await backend.attach(machine.id)
        assert await sh(again, "cat file") == "kept"
        await again.delete()


async def test_a_machine_whose_pid_1_died_is_gone_and_can_be_started_again(
    backend: BubblewrapBackend, machine: Machine, sh: Shell
) -> None:
    await machine.write("/workspace/file", b"kept")
    async with await machine.spawn(["sleep", "1000"]) as process:
        os.kill(_pid_1(backend, machine.id), signal.SIGKILL)
        with anyio.fail_after(10), pytest.raises(MachineGone):
            await process.wait()
    with pytest.raises(MachineGone):
        await machine.spawn(["true"])
    again = await backend.attach(machine.id)
    assert await sh(again, "cat file") == "kept"


async def test_garbage_of_a_crash_goes_with_the_next_deletion(
    backend: BubblewrapBackend, state: Path
) -> None:
    (state / "bubblewrap" / "layers" / "0123456789ab" / "system" / "u").mkdir(parents=True)
    (state / "bubblewrap" / "trash" / "half").mkdir()
    machine = await backend.create()
    await machine.delete()
    assert everything(state) == set()


async def test_handles_of_other_stores_are_unknown(
    backend: BubblewrapBackend, machine: Machine, tmp_path: Path
) -> None:
    async with BubblewrapBackend(tmp_path / "other") as other:
        with pytest.raises(UnknownHandle):
            await other.attach(machine.id)


async def test_a_host_that_does_not_hear_why_a_program_cannot_start_ends_no_machine(
    backend: BubblewrapBackend, machine: Machine
) -> None:
    sandbox = backend._running[machine.id].sandbox  # pyright: ignore[reportPrivateUsage]
    pipes = [os.pipe() for _ in range(4)]
    no_text: dict[str, Any] = {
        "do": "run",
        "argv": ["\ud800"],
        "env": {},
        "cwd": "/",
        "make_cwd": False,
    }
    os.close(pipes[REPORT][0])
    job = sandbox.daemon.start(no_text, descriptors=[writing for _, writing in pipes])
    await machine.write("/workspace/after", b"served")
    assert await read_bytes(machine, "/workspace/after", length=10) == b"served"
    await job.aclose()
    for descriptor in [*(writing for _, writing in pipes), *(reading for reading, _ in pipes[:3])]:
        os.close(descriptor)


def _pid_1(backend: BubblewrapBackend, machine_id: str) -> int:
    return backend._running[machine_id].sandbox.pid  # pyright: ignore[reportPrivateUsage]


async def test_a_machine_boots_however_late_the_host_looks_after_it(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() == 0:
        pytest.skip("as root, PID 1 waits until the host has given it its ids")
    open_pid = os.pidfd_open

    def open_late(pid: int) -> int:
        """Once PID 1 has let go of what it need not keep."""
        deadline = time.monotonic() + 20
        while len(list(Path(f"/proc/{pid}/fd").iterdir())) > 8:
            assert time.monotonic() < deadline
        return open_pid(pid)

    monkeypatch.setattr(os, "pidfd_open", open_late)
    async with BubblewrapBackend(state) as backend:
        await (await backend.create()).delete()
