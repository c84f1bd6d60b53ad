"""Cells that speak the kernel's protocol themselves, to a server that must believe nothing."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import pytest
import users

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from users import User

FLAT = 128
"""MiB by which the server's memory may grow: calls of 64 MiB are taken in at a time."""

TAKEN_OVER = """
import gc, json, os, struct, time
objects = gc.get_objects()
host = next(o for o in objects if type(o).__name__ == "Attachment")
number = next(o for o in objects if type(o).__name__ == "Kernel")._running.id
os.set_blocking(host._send, True)

def write(data):
    data = memoryview(data)
    while data:
        data = data[os.write(host._send, data):]

def frame(header, payload=b""):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("!II", len(header), len(payload)) + header + payload

def raw(header, payload=b""):
    write(frame(header, payload))

def call(n, name, **arguments):
    raw({"kind": "call", "id": n, "name": name}, json.dumps({"arguments": arguments}).encode())

output = {"kind": "output", "id": number, "skipped": 0}
"""


@asynccontextmanager
async def answering_sibling(user: User) -> AsyncGenerator[None]:
    """A machine whose commands go on to be answered in time, and a server that stays small."""
    before, slowest = users.high_water(user.pid), 0.0

    async def ask() -> None:
        nonlocal slowest
        while True:
            started = time.monotonic()
            assert await user.exec("echo alive", vmId=vm_id) == "alive\n"
            slowest = max(slowest, time.monotonic() - started)

    async with user.machine() as vm_id, anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        yield
        tasks.cancel_scope.cancel()
    assert slowest < 2
    assert users.high_water(user.pid) - before < FLAT
    assert await user.vm_ids() == []


@pytest.mark.parametrize(
    "attack",
    [
        "write(b'x' * 100)",
        'raw(b\'{"kind": "output", "id": NaN, "skipped": 0}\')',
        'raw(b\'{"kind": "output", "id": \' + b"9" * 5000 + b"}")',
        'raw(b\'{"kind": "output", "id": \' + b"[" * 60_000 + b"}")',
        'raw(b\'{"kind": "call", "kind": "reply", "id": 1, "ok": true}\')',
        "raw({'kind': 'call', 'id': 1, 'name': 'llmQuery'}, b'[' * 100_000 + b']' * 100_000)",
        "while True: raw({**output, 'skipped': 1})",
    ],
)
async def test_a_kernel_that_breaks_the_protocol_is_put_back_with_the_reason(
    user: User, attack: str
):
    async with answering_sibling(user):
        result = await user.run(f"print('so far')\n{TAKEN_OVER}{attack}", "FINAL('went on')")
    assert (result["status"], result["outputs"]) == ("finished", {"answer": "went on"}), result
    assert result["usage"]["sub_calls"] <= 30
    (recovery,) = user.events(result["run_id"], "machine_recovered")
    assert recovery["why"].startswith("The kernel ")
    assert len(recovery["why"]) < 500


@pytest.mark.parametrize(
    "attack",
    [
        "raw({'kind': 'call', 'id': 1, 'name': '__class__'}, b'{\"arguments\": {}}')",
        "call(1, 'llmQueryBatched', prompts=['x'] * 9000)",
        "call(1, 'vmBranch', count=10 ** 18)",
        "many = frame(output) * 2000\nuntil = time.time() + 1\n"
        "while time.time() < until: write(many)",
        "for n in range(8): call(n, 'llmQuery', prompt='x' * 30_000_000)",
        "write(struct.pack('!II', 20, 30_000_000) + b'x' * 1000)\nos._exit(0)",
        "os.kill(os.getpid(), 19)",
    ],
)
async def test_a_kernel_that_asks_floods_or_falls_silent_gets_nothing_for_it(
    user: User, attack: str
):
    async with answering_sibling(user):
        result = await user.run(f"{TAKEN_OVER}{attack}", "FINAL('went on')")
    assert result["outputs"] == {"answer": "went on"}, result
    assert result["usage"]["sub_calls"] == 0


async def test_a_hundred_thousand_sub_calls_at_once_are_held_to_the_budget(user: User):
    async with answering_sibling(user):
        result = await user.run(
            f"{TAKEN_OVER}for n in range(100_000): call(n, 'llmQuery', prompt='x')",
            "FINAL('went on')",
            maxLLMCalls=5,
        )
    assert result["status"] in {"finished", "partial"}
    assert result["usage"]["sub_calls"] <= 5
