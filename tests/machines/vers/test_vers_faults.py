"""Random faults from fixed seeds: each act ends in time, rightly or with an error of ours, and the
emulator has just the machines that somebody was given.
"""

from __future__ import annotations

import random
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import anyio
import pytest
from vers_client import hurry

from vers_emulator import (
    Cut,
    Delay,
    FailTls,
    Fault,
    Garbage,
    Hang,
    LoseReply,
    NotReady,
    Refuse,
    RefuseLogin,
    Reset,
    Truncate,
    VersEmulator,
    config_of,
    quota,
)
from vers_rlm_mcp.errors import VersRlmError
from vers_rlm_mcp.machines import ExitStatus, run_command
from vers_rlm_mcp.machines.vers import VersBackend, api, making, reach, ssh

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

pytestmark = pytest.mark.slow

SCHEDULES = 200

LANES = 4
"""Services at once, each with its share of the schedules: most of one is waiting."""

LIMIT = 20.0
"""Seconds for one act; the limits of the client are shortened to fit well inside."""

ROUTES = [
    *("POST /vm/new_root", "POST /vm/from_commit", "POST /vm/*/branch", "POST /vm/*/commit"),
    *("GET /vms", "GET /vm/*", "GET /commits", "PUT /vm/*/labels", "DELETE *", "*"),
]
ACTS = ["create", "branch", "restore", "exec", "exec", "files", "files", "cancel", "delete"]


def a_fault(chance: random.Random) -> Fault:
    """Anything that may go wrong, anywhere, up to three times."""
    route = chance.choice(ROUTES)
    times = chance.randint(1, 3)
    return chance.choice(
        [
            Refuse(at=route, status=chance.choice([429, 500, 502, 503, 504]), times=times),
            Refuse(at=route, status=503, retry_after="0", times=times),
            Refuse(at=route, status=400, body="malformed", times=1),
            quota(chance.choice(["POST /vm/new_root", "POST /vm/*/branch"])),
            Hang(at=route, times=1),
            Reset(at=route, times=times),
            LoseReply(at=route, times=times),
            Truncate(at=route, times=times),
            Garbage(at=route, times=times),
            Delay(at=route, seconds=0.05, times=times),
            NotReady(at="POST /vm/*", seconds=chance.uniform(0, 0.4), times=1),
            NotReady(at="POST /vm/*", seconds=0.3, hang=True, times=1),
            FailTls(at="*", times=times),
            RefuseLogin(at="*", times=times),
            Cut(at="exec", after_bytes=chance.choice([0, 1, 100, 1000])),
            Cut(at="exec", after_bytes=chance.choice([0, 1, 100, 1000])),
            Cut(at="exec", after_seconds=chance.choice([0.0, 0.01, 0.05])),
        ]
    )


async def act(
    backend: VersBackend,
    chance: random.Random,
    kept: set[str],
    go_wrong: Callable[[], None],
) -> None:
    """Something that a user does; what is made and given to them is noted in `kept`."""
    name = chance.choice(ACTS)
    if not kept or name == "create":
        go_wrong()
        kept.add((await backend.create()).id)
        return
    machine = await backend.attach(chance.choice(sorted(kept)))
    if chance.random() < 0.5:  # else the connection is made while things go wrong
        await run_command(machine, ["true"], timeout=10)
    go_wrong()
    if name == "branch":
        kept.update(copy.id for copy in await machine.branch(chance.randint(1, 2)))
    elif name == "restore":
        commit = await machine.snapshot()
        try:
            kept.add((await backend.restore(commit.id)).id)
        finally:
            with suppress(VersRlmError):
                await backend.delete_commit(commit.id)
    elif name == "exec":
        result = await run_command(machine, "echo out; exit 7", timeout=10)
        assert (result.status, result.stdout.data) == (ExitStatus(7), b"out\n")
    elif name == "files":
        data = chance.randbytes(5000)
        assert await machine.write("/workspace/file", data) == len(data)
        async with await machine.read("/workspace/file") as stream:
            assert b"".join([chunk async for chunk in stream]) == data
    elif name == "cancel":
        with anyio.move_on_after(chance.uniform(0, 0.1)):
            kept.update(copy.id for copy in await machine.branch())
    else:
        await machine.delete()
        kept.discard(machine.id)
    await machine.aclose()


async def shorten(emulators: Sequence[VersEmulator], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let limits be reached within a test, but not by what is only as slow as this host now."""
    await make_and_copy(emulators[0])  # what machines start from is made with the first one
    started = time.monotonic()
    async with anyio.create_task_group() as tasks:
        for emulator in emulators:
            tasks.start_soon(make_and_copy, emulator)
    unit = min(max(0.2, time.monotonic() - started), LIMIT / 20)
    for module, name, units in (
        (api, "CALL_SECONDS", 2),
        (api, "MAKE_SECONDS", 4),
        (making, "FINISH_SECONDS", 5),
        (ssh, "CONNECT_SECONDS", 3),
        (reach, "READY_SECONDS", 10),
    ):
        monkeypatch.setattr(module, name, units * unit)


async def make_and_copy(emulator: VersEmulator) -> None:
    async with VersBackend(config_of(emulator)) as backend:
        machine = await backend.create()
        await (await machine.branch())[0].delete()
        await machine.delete()


async def expect_only(backend: VersBackend, kept: set[str], seed: int) -> None:
    """Fail unless these are all machines, once what comes late has come and been deleted."""
    left: set[str] = set()
    with anyio.move_on_after(LIMIT):
        while (left := {info.id for info in await backend.list()}) != kept:  # noqa: ASYNC110 - a service gives no event
            await anyio.sleep(0.1)
    assert left == kept, f"schedule {seed}"


@dataclass
class Lane:
    """A service that schedules go over one after the other."""

    emulator: VersEmulator
    kept: set[str] = field(default_factory=set[str])
    done: int = 0
    failed: int = 0

    async def run(self, seeds: Iterable[int]) -> None:
        for seed in seeds:
            await self.schedule(seed)
        assert self.emulator.counts.vms_alive == len(self.kept)

    async def schedule(self, seed: int) -> None:
        chance = random.Random(seed)
        async with VersBackend(config_of(self.emulator)) as backend:
            faults = [a_fault(chance) for _ in range(chance.randint(1, 3))]
            try:
                with anyio.fail_after(LIMIT):
                    go_wrong = partial(self.emulator.faults.set, *faults)
                    await act(backend, chance, self.kept, go_wrong)
                self.done += 1
            except VersRlmError:
                self.failed += 1
            self.emulator.faults.clear()
            alive = {vm.id for vm in self.emulator.vms}
            gone = self.kept - alive  # a delete whose answer was lost
            assert len(gone) <= 1, f"schedule {seed}"
            self.kept -= gone
            await expect_only(backend, self.kept, seed)
            while len(self.kept) > 4:
                await backend.delete(self.kept.pop())


@pytest.mark.timeout(300)
async def test_under_any_faults_the_outcome_is_right_or_an_error_and_nothing_is_lost(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    async with AsyncExitStack() as stack:
        emulators = [await stack.enter_async_context(VersEmulator(state)) for _ in range(LANES)]
        await shorten(emulators, monkeypatch)
        lanes = [Lane(emulator) for emulator in emulators]
        async with anyio.create_task_group() as tasks:
            for number, lane in enumerate(lanes):
                tasks.start_soon(lane.run, range(number, SCHEDULES, LANES))
    assert sum(lane.done for lane in lanes) > SCHEDULES / 20
    assert sum(lane.failed for lane in lanes) > SCHEDULES / 20
    taken = [fault for emulator in emulators for fault in emulator.faults.taken]
    assert sum(isinstance(fault, Cut) for fault in taken) > SCHEDULES / 20
