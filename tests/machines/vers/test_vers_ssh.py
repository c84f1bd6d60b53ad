"""Programs and files over one SSH connection that is kept open, and what happens when it breaks."""

from __future__ import annotations

import hashlib
import random
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING

import anyio
import pytest
from vers_client import hurry

from assumptions import needs_root
from vers_emulator import Cut, NotReady, VersEmulator, config_of
from vers_rlm_mcp.errors import (
    BackendUnavailable,
    MachineError,
    MachineGone,
    PathRefused,
)
from vers_rlm_mcp.machines import ExitStatus, read_bytes, run_command
from vers_rlm_mcp.machines.vers import VersBackend, VersConfig

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from vers_rlm_mcp.machines import Machine

MIB = 1024 * 1024

DAEMON_MEMORY = 24 * MIB
"""More than a small Python takes, with a window or two."""

LARGE = 300
"""MiB of a large file."""

ODD_PATH = "/tmp/$(touch x)`id`;'\""


@pytest.fixture(autouse=True)
async def _calm(emulator: VersEmulator, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[None]:
    hurry(monkeypatch)
    yield
    emulator.faults.clear()


async def test_commands_share_one_connection(emulator: VersEmulator, machine: Machine) -> None:
    logins = emulator.counts.ssh_logins
    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(machine.write, "/workspace/file", b"x")
    for _ in range(5):
        await run_command(machine, ["true"], timeout=10)
    assert emulator.counts.ssh_logins == logins


async def test_any_number_of_commands_share_one_channel(
    emulator: VersEmulator, machine: Machine
) -> None:
    sessions = emulator.counts.sessions["exec"]
    number = emulator.options.max_sessions + 20
    results: list[ExitStatus | None] = []
    async with AsyncExitStack() as stack:
        processes = [
            await stack.enter_async_context(await machine.spawn(["cat"])) for _ in range(number)
        ]
        for process in processes:
            await process.stdin.aclose()
            results.append(await process.wait())
    assert results == [ExitStatus(0)] * number
    assert emulator.counts.sessions["exec"] == sessions


async def test_output_that_no_one_reads_holds_up_nothing_else(machine: Machine) -> None:
    size = 16 * MIB
    async with await machine.spawn(["head", "-c", str(size), "/dev/zero"]) as process:
        for _ in range(3):
            assert (await run_command(machine, ["true"], timeout=20)).status == ExitStatus(0)
        assert await daemon_memory(machine) < DAEMON_MEMORY
        seen = 0
        with anyio.fail_after(30):
            async for chunk in process.stdout:
                seen += len(chunk)
            assert await process.wait() == ExitStatus(0)
    assert seen == size


async def test_input_that_no_one_reads_holds_up_nothing_else(machine: Machine) -> None:
    async with await machine.spawn(["sleep", "1000"]) as process:
        with anyio.move_on_after(0.5) as scope:
            await process.stdin.send(bytes(16 * MIB))
        assert scope.cancelled_caught
        assert (await run_command(machine, ["true"], timeout=20)).status == ExitStatus(0)
        assert await daemon_memory(machine) < DAEMON_MEMORY


async def daemon_memory(machine: Machine) -> int:
    """Bytes that the machine's daemon has in memory."""
    script = "grep VmRSS /proc/$(pgrep vers-rlm-daemon)/status"
    result = await run_command(machine, script, timeout=20)
    return int(result.stdout.text.split()[1]) * 1024


@pytest.mark.parametrize("number", [7, 10, 24, 31, 34, 64])
async def test_a_signal_is_told_also_where_ssh_has_no_name_for_it(
    machine: Machine, number: int
) -> None:
    script = f"import os, time; os.kill(os.getpid(), {number}); time.sleep(60)"
    result = await run_command(machine, ["python3", "-c", script], timeout=20)
    assert result.status == ExitStatus(None, number)


async def test_a_daemon_that_is_killed_takes_what_it_knew_along_and_is_replaced(
    machine: Machine,
) -> None:
    async with await machine.spawn(["sleep", "1000"]) as process:
        with anyio.fail_after(20), suppress(MachineError):
            await run_command(machine, ["pkill", "-9", "vers-rlm-daemon"], timeout=20)
        with anyio.fail_after(20), pytest.raises(MachineError, match="not done again by itself"):
            await process.wait()
    assert (await run_command(machine, ["true"], timeout=20)).status == ExitStatus(0)


async def test_who_kills_all_python_programs_does_not_kill_the_daemon(machine: Machine) -> None:
    async with await machine.spawn(["sleep", "1000"]) as process:
        await run_command(machine, "pkill -9 python; pkill -9 python3; true", timeout=20)
        await process.kill()
        assert await process.wait() == ExitStatus(None, 9)


@needs_root
async def test_a_machine_without_python_says_so(
    emulator: VersEmulator, backend: VersBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vers_rlm_mcp.machines.daemon.client.QUIET_SECONDS", 0.0)
    machine = await backend.create()
    await run_command(machine, "rm -f /usr/bin/python3*", timeout=20)
    (vm,) = [vm for vm in emulator.vms if vm.id == machine.id]
    vm.disconnect()
    with anyio.fail_after(20), pytest.raises(BackendUnavailable, match="no python3"):
        await run_command(machine, ["true"], timeout=20)
    await machine.delete()


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("exit 0", ExitStatus(0)),
        ("exit 1", ExitStatus(1)),
        ("exit 7", ExitStatus(7)),
        ("exit 137", ExitStatus(137)),
        ("kill -9 $$", ExitStatus(None, 9)),
        ("kill -TERM $$", ExitStatus(None, 15)),
        ("sleep 60", None),
    ],
)
async def test_how_a_command_ended_is_told_apart(
    machine: Machine, command: str, status: ExitStatus | None
) -> None:
    result = await run_command(machine, command, timeout=1 if status is None else 20)
    assert result.status == status


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)), b"no newline"])
async def test_an_odd_path_is_only_a_path_and_its_content_is_exact(
    machine: Machine, data: bytes
) -> None:
    assert await machine.write(ODD_PATH, data) == len(data)
    assert await read_bytes(machine, ODD_PATH, length=MIB) == data
    seen = await run_command(machine, ["cat", ODD_PATH], timeout=10)
    assert seen.stdout.data == data
    with pytest.raises(PathRefused):
        await machine.read("/workspace/x")
    with pytest.raises(PathRefused):
        await machine.read("/tmp/x")


@pytest.mark.slow
async def test_a_file_of_300_megabytes_comes_back_as_it_was(machine: Machine) -> None:
    sent, received = hashlib.sha256(), hashlib.sha256()

    async def source() -> AsyncIterator[bytes]:
        block = random.Random(5).randbytes(MIB)
        for number in range(LARGE):
            chunk = number.to_bytes(8, "big") + block[8:]
            sent.update(chunk)
            yield chunk

    assert await machine.write("/workspace/large", source()) == LARGE * MIB
    async with await machine.read("/workspace/large") as stream:
        async for chunk in stream:
            received.update(chunk)
    assert received.digest() == sent.digest()


async def test_a_command_whose_connection_breaks_is_not_run_again(
    emulator: VersEmulator, machine: Machine
) -> None:
    script = "echo once >> log; read line; echo"
    async with await machine.spawn(["sh", "-c", script]) as process:
        (vm,) = [vm for vm in emulator.vms if vm.id == machine.id]
        while not (await run_command(machine, "cat log", timeout=10)).stdout.data:  # noqa: ASYNC110 - nor does a file
            await anyio.sleep(0.01)
        vm.disconnect()
        with anyio.fail_after(20), pytest.raises(MachineError, match="not done again by itself"):
            await process.wait()
        with pytest.raises(anyio.BrokenResourceError):
            await process.stdout.receive()
    result = await run_command(machine, "cat log; ps ax | grep -c '[e]cho once'", timeout=10)
    assert result.stdout.data == b"once\n0\n"


async def test_a_transfer_that_breaks_half_way_is_an_error(
    emulator: VersEmulator, machine: Machine
) -> None:
    emulator.faults.set(Cut(at="exec", after_bytes=MIB))
    with anyio.fail_after(30), pytest.raises(MachineError, match="was lost"):
        await machine.write("/workspace/file", bytes(4 * MIB))
    assert await machine.write("/workspace/file", b"whole") == 5
    await machine.write("/workspace/large", bytes(4 * MIB))
    emulator.faults.set(Cut(at="exec", after_bytes=MIB))
    with anyio.fail_after(30), pytest.raises(MachineError, match="was lost"):
        await read_bytes(machine, "/workspace/large", length=8 * MIB)
    assert await read_bytes(machine, "/workspace/file", length=MIB) == b"whole"


async def test_a_connection_that_was_lost_while_nothing_ran_is_opened_again(
    emulator: VersEmulator, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vers_rlm_mcp.machines.daemon.client.QUIET_SECONDS", 0.0)
    (vm,) = [vm for vm in emulator.vms if vm.id == machine.id]
    for _ in range(3):
        vm.disconnect()
        assert (await run_command(machine, ["true"], timeout=20)).status == ExitStatus(0)


async def test_a_machine_that_somebody_else_deleted_is_gone(
    emulator: VersEmulator, backend: VersBackend
) -> None:
    machine = await backend.create()
    async with VersBackend(config_of(emulator)) as other:
        process = await machine.spawn(["sleep", "1000"])
        await other.delete(machine.id)
        with anyio.fail_after(20), pytest.raises(MachineGone):
            await process.wait()
        await process.aclose()
        with anyio.fail_after(20), pytest.raises(MachineGone):
            await machine.spawn(["true"])


async def test_a_machine_that_stands_still_is_woken(
    emulator: VersEmulator, backend: VersBackend, machine: Machine
) -> None:
    from vers_rlm_mcp.machines.vers.api import VersApi

    api = VersApi(config_of(emulator))
    await api.pause(machine.id)
    assert not (await machine.info()).running
    again = await backend.attach(machine.id)
    assert (await run_command(again, ["true"], timeout=20)).status == ExitStatus(0)
    await api.aclose()


async def test_a_machine_that_is_paused_during_a_call_is_noticed_and_resumed(
    emulator: VersEmulator, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vers_rlm_mcp.machines.daemon.client.QUIET_SECONDS", 0.0)
    monkeypatch.setattr("vers_rlm_mcp.machines.daemon.client.PING_SECONDS", 0.3)
    monkeypatch.setattr("vers_rlm_mcp.machines.vers.ssh.CONNECT_SECONDS", 2.0)
    await emulator.cloud.set_state(machine.id, "Sleeping")
    with anyio.fail_after(30):
        assert (await run_command(machine, ["true"], timeout=20)).status == ExitStatus(0)


async def test_another_host_key_than_before_is_not_trusted(
    emulator: VersEmulator, backend: VersBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vers_rlm_mcp.machines.daemon.client.QUIET_SECONDS", 0.0)
    machine = await backend.create()
    (vm,) = [vm for vm in emulator.vms if vm.id == machine.id]
    image = vm.image
    stranger = type(image.keys).new()
    vm.image = type(image)(type(image.keys)(stranger.host, image.keys.client), image.config)
    vm.disconnect()
    with anyio.fail_after(20), pytest.raises(BackendUnavailable, match="another SSH host key"):
        await run_command(machine, ["true"], timeout=10)
    await machine.delete()


async def test_a_certificate_of_an_unknown_authority_is_not_trusted(emulator: VersEmulator) -> None:
    config = config_of(emulator)
    careful = VersConfig(
        config.key, config.url, config.ssh_domain, config.ssh_address, fidelity="disk"
    )
    async with VersBackend(careful) as backend:
        with anyio.fail_after(20), pytest.raises(BackendUnavailable, match="VERS_CA_FILE"):
            await backend.create()
    assert list(emulator.vms) == []
    careless = VersConfig(
        config.key, config.url, config.ssh_domain, config.ssh_address, insecure=True
    )
    async with VersBackend(careless) as backend:
        machine = await backend.create()
        assert (await run_command(machine, ["true"], timeout=20)).status == ExitStatus(0)
        await machine.delete()


async def test_a_silent_machine_is_given_up(
    emulator: VersEmulator, backend: VersBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vers_rlm_mcp.machines.vers.ssh.CONNECT_SECONDS", 0.3)
    monkeypatch.setattr("vers_rlm_mcp.machines.vers.reach.READY_SECONDS", 1.0)
    emulator.faults.set(NotReady(at="POST /vm/new_root", seconds=60, hang=True))
    with anyio.fail_after(20), pytest.raises(MachineError, match="does not let us in"):
        await backend.create()
    assert list(emulator.vms) == []
