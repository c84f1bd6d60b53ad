"""Random faults from fixed seeds: each act ends in time, rightly or with an error of ours, and the
emulator has just the machines that somebody was given.
"""

from __future__ import annotations

import random
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import anyio
import pytest
from vers_client import config_of, hurry

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
    quota,
)
from vers_rlm_mcp.errors import VersRlmError
from vers_rlm_mcp.machines import ExitStatus, run_command
from vers_rlm_mcp.machines.vers import VersBackend, api, link, making, ssh

if TYPE_CHECKING:
    from collections.abc import Callable

SCHEDULES = 200

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


async def shorten(backend: VersBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let limits be reached within a test, but not by what is only as slow as this host now."""
    started = time.monotonic()
    machine = await backend.create()
    await (await machine.branch())[0].delete()
    await machine.delete()
    unit = min(max(0.2, time.monotonic() - started), LIMIT / 20)
    for module, name, units in (
        (api, "CALL_SECONDS", 2),
        (api, "MAKE_SECONDS", 4),
        (making, "FINISH_SECONDS", 5),
        (ssh, "CONNECT_SECONDS", 3),
        (link, "READY_SECONDS", 10),
    ):
        monkeypatch.setattr(module, name, units * unit)


async def expect_only(backend: VersBackend, kept: set[str], seed: int) -> None:
    """Fail unless these are all machines, once what comes late has come and been deleted."""
    left: set[str] = set()
    with anyio.move_on_after(LIMIT):
        while (left := {info.id for info in await backend.list()}) != kept:  # noqa: ASYNC110 - a service gives no event
            await anyio.sleep(0.1)
    assert left == kept, f"schedule {seed}"


@pytest.mark.timeout(300)
async def test_under_any_faults_the_outcome_is_right_or_an_error_and_nothing_is_lost(
    emulator: VersEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    async with VersBackend(config_of(emulator)) as backend:
        await shorten(backend, monkeypatch)
    done = failed = 0
    kept: set[str] = set()
    for seed in range(SCHEDULES):
        chance = random.Random(seed)
        async with VersBackend(config_of(emulator)) as backend:
            faults = [a_fault(chance) for _ in range(chance.randint(1, 3))]
            try:
                with anyio.fail_after(LIMIT):
                    await act(backend, chance, kept, partial(emulator.faults.set, *faults))
                done += 1
            except VersRlmError:
                failed += 1
            emulator.faults.clear()
            alive = {vm.id for vm in emulator.vms}
            gone = kept - alive  # a delete whose answer was lost
            assert len(gone) <= 1, f"schedule {seed}"
            kept -= gone
            await expect_only(backend, kept, seed)
            while len(kept) > 4:
                await backend.delete(kept.pop())
    assert min(done, failed) > SCHEDULES / 20
    assert sum(isinstance(fault, Cut) for fault in emulator.faults.taken) > SCHEDULES / 20
    assert emulator.counts.vms_alive == len(kept)
