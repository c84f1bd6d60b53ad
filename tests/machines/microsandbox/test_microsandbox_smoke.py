"""Each thing that a machine can do, once: what a change is tried with that has no time for all."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vers_rlm_mcp.machines import run_command

if TYPE_CHECKING:
    from collections.abc import Generator

    from vers_rlm_mcp.machines import Backend, Machine

SECONDS = 60.0

COUNT = """
(n=0; while sleep 1; do n=$((n + 1)); echo $n > /dev/shm/n; done) > /dev/null 2>&1 &
while ! [ -s /dev/shm/n ]; do sleep 1; done
"""
"""Gently: many machines do it at once, perhaps on a processor that is emulated."""

IDENTITY = "hostname; cat /etc/machine-id; head -c 16 /dev/urandom | od -An -tx1; date +%s"

RISES = 'seen=$(cat /dev/shm/n); while [ "0$(cat /dev/shm/n)" -le "0$seen" ]; do sleep 1; done'


async def test_copies_continue_with_their_own_identity(backend: Backend) -> None:
    with measured("create"):
        machine = await backend.create(labels={"purpose": "smoke"})
    try:
        with measured("exec"):
            assert await sh(machine, "echo here") == "here"
        await sh(machine, COUNT)
        with measured("branch x1"):
            copies = [*await machine.branch(1)]
        with measured("snapshot"):
            commit = await machine.snapshot()
        assert commit.fidelity == "memory", commit.notes
        with measured("restore"):
            copies.append(await backend.restore(commit.id))
        with measured("branch x4"):
            copies += await machine.branch(4)
        identities = [(await sh(copy, IDENTITY)).split("\n") for copy in (machine, *copies)]
        for part in zip(*(identity[:3] for identity in identities), strict=True):
            assert len(set(part)) == 1 + len(copies), part
        assert all(abs(int(identity[3]) - time.time()) < SECONDS for identity in identities)
        for copy in copies:
            await sh(copy, RISES)
        await machine.delete()
        await sh(copies[0], RISES)
        await backend.delete_commit(commit.id)
    finally:
        await delete_all(backend)


async def delete_all(backend: Backend) -> None:
    for info in await backend.list():
        await backend.delete(info.id)
    for left in await backend.commits():
        await backend.delete_commit(left.id)


async def sh(machine: Machine, script: str) -> str:
    result = await run_command(machine, ["sh", "-c", script], timeout=SECONDS)
    assert result.status, f"{script!r} took longer than {SECONDS} s"
    assert result.status.ok, result.stderr.text
    return result.stdout.text.strip()


@contextmanager
def measured(what: str) -> Generator[None]:
    started = time.monotonic()
    yield
    print(f"{what}: {time.monotonic() - started:.2f} s")
