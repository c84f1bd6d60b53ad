"""Without a cgroup, what programs hold in memory is bounded, in whatever kind of memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vers_rlm_mcp.machines import MachineSpec, run_command
from vers_rlm_mcp.machines.bubblewrap import BubblewrapBackend

if TYPE_CHECKING:
    from pathlib import Path

ALLOWED = 256
TOO_MUCH = 1024
"""MiB."""

PRELUDE = """
import ctypes, mmap, os, threading, time
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
MIB = 1 << 20
kept = []
def loop():
    for number in range(0, 1024, 16):
        more()
        time.sleep(0.03)
    print("never stopped", flush=True)
"""

PRIVATE = "def more(): kept.append(bytearray(os.urandom(1)) * (16 * MIB))"

SHARED = """
def more():
    kept.append(mmap.mmap(-1, 16 * MIB))
    kept[-1].write(bytes(16 * MIB))
"""

SHARED_AND_DROPPED = (
    SHARED
    + """
    kept[-1].madvise(mmap.MADV_DONTNEED)
"""
)

IN_MEMORY_FILES = """
def more():
    kept.append(os.memfd_create("x"))
    os.write(kept[-1], bytes(16 * MIB))
"""

IN_SEGMENTS = """
def more():
    number = libc.shmget(0, ctypes.c_size_t(16 * MIB), 0o1600)
    if number < 0:
        raise MemoryError
    address = libc.shmat(number, None, 0)
    ctypes.memset(ctypes.c_void_p(address), 1, 16 * MIB)
    kept.append(address)
"""

IN_CHILDREN = """
def more():
    if os.fork() == 0:
        content = bytearray(b"x") * (16 * MIB)
        time.sleep(1000)
"""

HIDDEN = {
    "private": PRIVATE,
    "shared": SHARED,
    "shared and dropped": SHARED_AND_DROPPED,
    "memory files": IN_MEMORY_FILES,
    "segments": IN_SEGMENTS,
    "children": IN_CHILDREN,
}

RUN = """
loop()
"""

RUN_WITHOUT_A_MAIN_THREAD = """
threading.Thread(target=loop).start()
libc.syscall(60 if os.uname().machine == "x86_64" else 93, 0)
"""


@pytest.mark.parametrize("run", [RUN, RUN_WITHOUT_A_MAIN_THREAD], ids=["main", "thread"])
@pytest.mark.parametrize("kind", HIDDEN)
async def test_no_more_memory_can_be_held_than_allowed(
    state: Path, monkeypatch: pytest.MonkeyPatch, kind: str, run: str
) -> None:
    monkeypatch.setattr("vers_rlm_mcp.machines.bubblewrap.backend.controllers", tuple)
    async with BubblewrapBackend(state) as backend:
        machine = await backend.create(MachineSpec(mem_size_mib=ALLOWED))
        try:
            program = PRELUDE + HIDDEN[kind] + run
            result = await run_command(machine, ["python3", "-c", program], timeout=60)
        finally:
            await machine.delete()
    if kind == "children":  # Each is killed by itself.
        return
    assert "never stopped" not in result.stdout.text
    assert result.status is not None
    refused = "MemoryError" in result.stderr.text
    assert refused or "of memory" in result.stderr.text
