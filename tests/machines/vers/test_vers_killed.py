"""A server that is killed between asking for copies and labelling them loses none of them."""

from __future__ import annotations

import json
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest
from vers_client import hurry

from vers_emulator import Delay, VersEmulator, config_of
from vers_rlm_mcp.machines import Fleet
from vers_rlm_mcp.machines.vers import VersBackend
from vers_rlm_mcp.store import Ledger

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[2]
LABELS = "PUT /vm/*/labels"


@pytest.fixture(autouse=True)
async def _calm(emulator: VersEmulator, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[None]:
    hurry(monkeypatch)
    yield
    emulator.faults.clear()
    for vm in emulator.vms:
        await emulator.cloud.delete(vm.id)


@asynccontextmanager
async def killed_server(emulator: VersEmulator, state: Path, how: str) -> AsyncGenerator[str]:
    """Runs a server until its copies are there and not labelled; gives the id of the original."""
    facts = json.dumps(emulator.facts())
    made = {"restore": 2, "branch": 3, "kept": 3}[how]
    with anyio.fail_after(60):
        async with await anyio.open_process(
            [sys.executable, "-m", "machines.vers.vers_server", facts, str(state), how], cwd=TESTS
        ) as server:
            assert server.stdout is not None
            assert server.stdin is not None
            machine_id = (await server.stdout.receive()).decode().strip()
            emulator.faults.set(Delay(at=LABELS, seconds=600, times=None))
            await server.stdin.send(b"\n")
            while len(emulator.vms) < made:  # noqa: ASYNC110 - a service gives no event
                await anyio.sleep(0.02)
            server.kill()
            await server.wait()
        emulator.faults.clear()
        yield machine_id


@asynccontextmanager
async def new_server(emulator: VersEmulator, state: Path) -> AsyncGenerator[Fleet]:
    ledger = Ledger(state)
    async with VersBackend(config_of(emulator)) as backend:
        yield Fleet(backend, ledger, max_machines=8)
    ledger.close()


@pytest.mark.parametrize("how", ["branch", "restore"])
async def test_the_next_server_deletes_copies_that_a_killed_one_could_not_label(
    emulator: VersEmulator, tmp_path: Path, how: str
) -> None:
    async with killed_server(emulator, tmp_path, how), new_server(emulator, tmp_path) as fleet:
        await fleet.sweep()
    assert list(emulator.vms) == []


async def test_what_somebody_else_may_have_copied_is_named_and_not_deleted(
    emulator: VersEmulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        killed_server(emulator, tmp_path, "kept") as original,
        new_server(emulator, tmp_path) as fleet,
    ):
        await fleet.sweep()
    assert len(emulator.vms) == 3
    for vm in emulator.vms:
        assert vm.id == original or vm.id in caplog.text


async def test_more_copies_than_were_asked_for_are_named_and_not_deleted(
    emulator: VersEmulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with killed_server(emulator, tmp_path, "branch") as original:
        (stranger,) = await emulator.cloud.branch(original, "by hand")
        async with new_server(emulator, tmp_path) as fleet:
            await fleet.sweep()
    assert len(emulator.vms) == 3
    assert stranger.id in caplog.text


async def test_copies_that_another_server_is_making_are_let_be(
    emulator: VersEmulator, tmp_path: Path
) -> None:
    async with killed_server(emulator, tmp_path, "branch") as original:
        other = Ledger(tmp_path)
        assert other.ask("vers", limit=8, parent=original)
        async with new_server(emulator, tmp_path) as fleet:
            await fleet.sweep()
        assert len(emulator.vms) == 2
        other.close()
