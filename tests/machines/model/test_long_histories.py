"""Long histories of one kind: deep chains, many restores, and snapshots of busy machines."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import anyio
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream
from subjects import BUBBLEWRAP, FAKE, Subject

from vers_rlm_mcp.machines import read_bytes, run_command

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from vers_rlm_mcp.machines import Backend, Machine

pytestmark = pytest.mark.slow

SECONDS: Final = 60.0
MAX_OUTPUT: Final = 1 << 20

DEPTH: Final = 105
"""Commits below the last: more than `MERGE_LAYERS`."""

STEP: Final = """
printf $1 > $1; touch -d @$1.123456789 $1; printf "$1 " >> state
if [ $(($1 % 7)) = 6 ]; then mv $(($1 - 1)) "renamed $(($1 - 1))"; rm $(($1 - 5)); fi
"""

LIST: Final = "cat *; stat -c '%n %.Y' [!s]*"

REPLACING: Final = """
import os
number = 0
while True:
    number += 1
    with open("making", "w") as file:
        file.write(f"{number}\\n" * 5000)
    os.rename("making", "whole")
    if number == 3:
        print("ready", flush=True)
"""

LOGGING: Final = """
import os
number = 0
log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
while True:
    number += 1
    os.write(log, b"%d\\n" % number)
    if number == 100:
        print("ready", flush=True)
"""

MAPPING: Final = """
import mmap, os
with open("mapped", "wb+") as file:
    file.truncate(1 << 20)
    pages = mmap.mmap(file.fileno(), 0)
number = 0
while True:
    number += 1
    pages[0:8] = number.to_bytes(8, "big")
    pages[(1 << 20) - 8:] = number.to_bytes(8, "big")
    if number == 100:
        print("ready", flush=True)
"""

CHECKING: Final = """
lines = open("whole").read().split()
assert len(lines) == 5000 and len(set(lines)) == 1, set(lines)
data = open("log", "rb").read()
assert data.endswith(b"\\n")
logged = [int(line) for line in data.split()]
assert logged == list(range(1, len(logged) + 1))
mapped = open("mapped", "rb").read()
first, last = (int.from_bytes(part, "big") for part in (mapped[:8], mapped[-8:]))
assert first - last in (0, 1), (first, last)
print(lines[0], len(logged), first)
"""


@pytest.fixture(params=[BUBBLEWRAP, FAKE], ids=lambda subject: subject.name)
def subject(request: pytest.FixtureRequest) -> Subject:
    """Each backend, as it usually is."""
    return request.param


@pytest.fixture
async def backend(subject: Subject, state: Path) -> AsyncIterator[Backend]:
    async with subject.open(state / subject.name) as opened:
        yield opened
        for info in await opened.list():
            await opened.delete(info.id)
        for commit in await opened.commits():
            await opened.delete_commit(commit.id)


async def run(machine: Machine, *argv: str) -> str:
    result = await run_command(machine, argv, timeout=SECONDS, limit=MAX_OUTPUT)
    assert result.status is not None
    assert result.status.ok, result.stderr.text
    return result.stdout.text


async def test_a_chain_of_a_hundred_commits_forgets_nothing(backend: Backend) -> None:
    machine = await backend.create()
    wanted: dict[str, str] = {}
    for number in range(1, DEPTH + 1):
        listed = await run(machine, "sh", "-c", STEP + LIST, "sh", str(number))
        commit = await machine.snapshot()
        wanted[commit.id] = listed
        if number % 25 == 0:  # Every part of the chain has another machine.
            await machine.delete()
            machine = await backend.restore(commit.id)
    ids = list(wanted)
    for commit_id in (ids[0], ids[49], ids[99], ids[-1]):
        restored = await backend.restore(commit_id)
        assert await run(restored, "sh", "-c", LIST) == wanted[commit_id]
        await restored.delete()
    (branch,) = await machine.branch()
    assert await run(branch, "sh", "-c", LIST) == wanted[ids[-1]]
    for commit_id in ids:
        await backend.delete_commit(commit_id)
    assert await run(branch, "sh", "-c", LIST) == wanted[ids[-1]]
    assert await run(machine, "sh", "-c", LIST) == wanted[ids[-1]]


async def test_fifty_times_restored_is_as_it_was(backend: Backend) -> None:
    machine = await backend.create()
    for number in range(50):
        data = hashlib.sha512(b"%d" % number).digest() * (1000 + number)
        await machine.write("/workspace/data", data)
        commit = await machine.snapshot()
        await machine.write("/workspace/data", b"overwritten")
        await machine.delete()
        machine = await backend.restore(commit.id)
        found = await read_bytes(machine, "/workspace/data", length=len(data) + 1)
        assert hashlib.sha256(found).digest() == hashlib.sha256(data).digest()


async def test_a_busy_machine_is_caught_at_one_instant(backend: Backend) -> None:
    machine = await backend.create()
    async with (
        await machine.spawn(["python3", "-c", REPLACING]) as replacing,
        await machine.spawn(["python3", "-c", LOGGING]) as logging,
        await machine.spawn(["python3", "-c", MAPPING]) as mapping,
    ):
        for process in (replacing, logging, mapping):
            with anyio.fail_after(SECONDS):
                line = await BufferedByteReceiveStream(process.stdout).receive_until(b"\n", 10)
            assert line == b"ready"
        commits = [await machine.snapshot() for _ in range(4)]
    before = [0, 0, 0]
    for commit in commits:
        restored = await backend.restore(commit.id)
        numbers = [
            int(number) for number in (await run(restored, "python3", "-c", CHECKING)).split()
        ]
        assert all(old <= new for old, new in zip(before, numbers, strict=True))
        before = numbers
        await restored.delete()
