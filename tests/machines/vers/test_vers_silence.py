"""A peer that takes a connection and says nothing, or does not even take it, holds up a call for
little longer than the call's own time limit.
"""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio
import pytest
from vers_client import hurry

from vers_emulator import Hang, Mute, NotReady, VersEmulator, config_of
from vers_rlm_mcp.errors import MachineError
from vers_rlm_mcp.machines import Fleet, operations, run_command
from vers_rlm_mcp.machines.daemon import client
from vers_rlm_mcp.machines.vers import VersBackend, api
from vers_rlm_mcp.runs import Workbench
from vers_rlm_mcp.settings import Settings
from vers_rlm_mcp.store import Ledger

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator
    from pathlib import Path

    from vers_rlm_mcp.machines import Machine

SMALL = 3.0
"""Seconds that a call may take beyond its limit, on a loaded host."""

BACKLOG = 4


@pytest.fixture(autouse=True)
async def _calm(emulator: VersEmulator, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[None]:
    hurry(monkeypatch)
    monkeypatch.setattr(operations, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(api, "SILENT_SECONDS", 0.3)
    monkeypatch.setattr(client, "QUIET_SECONDS", 0.2)
    monkeypatch.setattr(client, "PING_SECONDS", 0.5)
    yield
    emulator.faults.clear()
    for vm in emulator.vms:
        await emulator.cloud.delete(vm.id)


@contextmanager
def silence(kind: str) -> Generator[str]:
    """The address of a peer that answers nothing."""
    with ExitStack() as stack:
        listener = stack.enter_context(
            closing(socket.create_server(("127.0.0.1", 0), backlog=BACKLOG))
        )
        port = listener.getsockname()[1]
        # Connections that no one accepts: the kernel takes some, and once they are too many it
        # answers no more, like a firewall that drops packets.
        for _ in range(2 * BACKLOG if kind == "black hole" else 0):
            other = stack.enter_context(closing(socket.socket()))
            other.setblocking(False)
            other.connect_ex(("127.0.0.1", port))
        yield f"127.0.0.1:{port}"


@contextmanager
def at_most(seconds: float) -> Generator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds + SMALL


@pytest.mark.parametrize("kind", ["accepts", "black hole"])
async def test_a_service_that_answers_nothing_holds_up_no_call(
    emulator: VersEmulator, tmp_path: Path, kind: str
) -> None:
    ledger = Ledger(tmp_path)
    with silence(kind) as address:
        config = replace(config_of(emulator), url=f"http://{address}")
        async with VersBackend(config) as backend:
            fleet = Fleet(backend, ledger, max_machines=8)
            bench = Workbench(fleet, Settings())
            for machine_id in (None, "00000000-0000-4000-8000-000000000000"):
                with at_most(1), pytest.raises(MachineError, match="not answer"):
                    await bench.exec("true", machine_id=machine_id, timeout=1, limit=100)
            with at_most(1), anyio.move_on_after(1), suppress(MachineError):
                await fleet.create()
            with at_most(1):
                await fleet.sweep()
    ledger.close()


@pytest.mark.parametrize("kind", ["accepts", "black hole"])
async def test_a_machine_that_answers_nothing_holds_up_no_command(
    emulator: VersEmulator, machine: Machine, kind: str
) -> None:
    with silence(kind) as address:
        config = replace(config_of(emulator), ssh_address=address)
        async with VersBackend(config) as backend:
            silent = await backend.attach(machine.id)
            with at_most(1), pytest.raises(MachineError, match="did not answer within 1 s"):
                await run_command(silent, ["true"], timeout=1)


async def test_a_door_that_is_mute_holds_up_no_command(
    emulator: VersEmulator, machine: Machine
) -> None:
    emulator.faults.set(Mute(times=None))
    async with VersBackend(config_of(emulator)) as backend:
        silent = await backend.attach(machine.id)
        with at_most(1), pytest.raises(MachineError, match="did not answer within 1 s"):
            await run_command(silent, ["true"], timeout=1)


async def test_a_machine_that_falls_silent_holds_up_no_command(
    emulator: VersEmulator, machine: Machine
) -> None:
    async with await machine.spawn(["true"]):
        pass
    (vm,) = [vm for vm in emulator.vms if vm.id == machine.id]

    async def fall_silent() -> None:
        await anyio.sleep(0.3)
        vm.audible = anyio.Event()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fall_silent)
        with at_most(2), pytest.raises(MachineError, match="was lost"):
            await run_command(machine, ["sleep", "60"], timeout=1)
    vm.audible.set()
    assert (await run_command(machine, ["true"], timeout=20)).exit_code == 0


async def test_a_request_that_hangs_is_waited_for_only_while_the_service_answers(
    emulator: VersEmulator, machine: Machine
) -> None:
    with silence("accepts") as address:
        config = config_of(emulator)
        async with VersBackend(config) as backend:
            emulator.faults.set(Hang(at="POST /vm/new_root", times=None))
            with at_most(1), anyio.move_on_after(1):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(backend.create)
                    await anyio.sleep(0.5)
                    backend.config = backend._api.config = replace(config, url=f"http://{address}")  # pyright: ignore[reportPrivateUsage] - as if a cable were pulled
    emulator.faults.clear()


async def test_a_machine_that_never_lets_us_in_ends_a_cancelled_call_at_once(
    emulator: VersEmulator, backend: VersBackend
) -> None:
    emulator.faults.set(NotReady(at="POST /vm/new_root", seconds=600, hang=True))
    with at_most(1), anyio.move_on_after(1):
        await backend.create()
    assert emulator.vms == []
