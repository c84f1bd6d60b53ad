"""What a machine may write is bounded, wherever programs hide it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vers_rlm_mcp.machines import MachineSpec, run_command

if TYPE_CHECKING:
    from vers_rlm_mcp.machines.bubblewrap import BubblewrapBackend

SECONDS = 60.0
ALLOWED = 64
"""MiB that the machine may write."""

TOO_MUCH = 512
"""MiB: the watchdog may be late by some, and never by as much."""

WRITE = """
import os, signal, time
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
piece = bytes(4 << 20)
kept = []
def write(path):
    file = open(path, "wb", buffering=0)
    assert file.write(piece) == len(piece)
    return file
"""

TOO_DEEP_FOR_A_PATH = """
for _ in range(30):
    os.mkdir("d" * 200)
    os.chdir("d" * 200)
def more(number):
    write(f"file{number}").close()
"""

REMOVED_BUT_OPEN = """
def more(number):
    kept.append(write("file"))
    os.unlink("file")
"""

WHERE_COUNTING_IS_DISTURBED = """
if os.fork() == 0:
    parent = os.getppid()
    while os.getppid() == parent:
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) not in (1, parent, os.getpid()):
                try:
                    os.kill(int(name), signal.SIGKILL)
                except ProcessLookupError:
                    pass
    os._exit(0)
def more(number):
    write(f"file{number}").close()
"""

LOOP = f"""
for number in range({TOO_MUCH} // 4):
    try:
        more(number)
    except (OSError, AssertionError):
        print("stopped after", number * 4)
        break
    time.sleep(0.02)
else:
    print("never stopped")
"""


@pytest.mark.parametrize("hidden", [
    TOO_DEEP_FOR_A_PATH, REMOVED_BUT_OPEN, WHERE_COUNTING_IS_DISTURBED,
], ids=["deep", "removed", "disturbed"])  # fmt: skip
async def test_no_more_can_be_written_than_allowed(backend: BubblewrapBackend, hidden: str) -> None:
    machine = await backend.create(MachineSpec(fs_size_mib=ALLOWED))
    result = await run_command(machine, ["python3", "-c", WRITE + hidden + LOOP], timeout=SECONDS)
    await machine.delete()
    assert "never stopped" not in result.stdout.text
    assert result.stdout.text.startswith("stopped") or (result.status and result.status.signal)
