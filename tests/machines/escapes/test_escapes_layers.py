"""What a machine leaves on the host's disk can neither harm the host nor change afterwards."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import anyio
import pytest

from vers_rlm_mcp.machines import read_bytes, run_command
from vers_rlm_mcp.machines.bubblewrap import BubblewrapBackend

if TYPE_CHECKING:
    from pathlib import Path

    from vers_rlm_mcp.machines import Machine

SECONDS = 30.0
STRANGER = 54322
"""A user of the host who is neither root nor the one whose machines these are."""

TRAPS = """
import os, socket, sys
outside = sys.argv[1]
os.makedirs("traps/locked/deeper")
os.symlink(outside, "traps/absolute")
os.symlink("../" * 40 + outside[1:], "traps/relative")
os.symlink(".", "traps/loop")
os.symlink(outside, "traps/locked/deeper/again")
os.mkfifo("traps/fifo")
socket.socket(socket.AF_UNIX).bind("traps/socket")
open("traps/-rf\\n*", "w").close()
os.chmod("traps/locked/deeper", 0)
os.chmod("traps/locked", 0)
os.chdir("traps")
for _ in range(400):  # deeper than a path can be long
    os.mkdir("d" * 10)
    os.chdir("d" * 10)
os.symlink(outside, "last")
"""

MAPPED = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
file = os.open("file", os.O_RDWR | os.O_CREAT)
os.write(file, b"frozen")
address = libc.mmap(None, 6, 3, 1, file, 0)  # readable and writable, shared
os.close(file)
os.chdir("/run")
print("mapped", flush=True)
sys.stdin.readline()
ctypes.memmove(address, b"forged", 6)
print("written", flush=True)
sys.stdin.readline()
"""

FORGED = """
import itertools, os
os.makedirs("forged/empty")
os.makedirs("forged/full")
open("forged/full/file", "w").close()
open("forged/file", "w").write("mine")
names = ["opaque", "redirect", "metacopy", "whiteout", "origin", "impure", "nlink", "upper",
         "overlay.opaque", "overlay.redirect", "protattr", "uuid"]
values = [b"y", b"x", b"/", b"../../../../base", b"/../../../layers", b"", b"\\0" * 8]
places = ["forged", "forged/empty", "forged/full", "forged/file"]
made = 0
for place, name, value in itertools.product(places, names, values):
    for kind in ("user", "trusted"):
        try:
            os.setxattr(place, f"{kind}.overlay.{name}", value)
        except OSError:
            continue
        made += 1
print(made)
"""


async def python(machine: Machine, code: str, *arguments: str) -> str:
    result = await run_command(machine, ["python3", "-c", code, *arguments], timeout=SECONDS)
    assert result.status, "it did not end"
    assert result.status.ok, result.stderr.text
    return result.stdout.text


async def sh(machine: Machine, script: str) -> str:
    return (await run_command(machine, script, timeout=SECONDS)).stdout.text


def kept(state: Path) -> set[Path]:
    """What the backend keeps of machines and commits."""
    return {
        path
        for name in ("layers", "machines", "trash")
        for path in (state / "bubblewrap" / name).iterdir()
    }


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory of the host that a link in a machine names."""
    place = tmp_path / "outside"
    (place / "below").mkdir(parents=True)
    (place / "below/file").write_text("the host's")
    return place


@pytest.mark.parametrize("copied", [False, True], ids=["switched", "copied"])
async def test_nothing_that_a_link_names_is_copied_or_removed(
    backend: BubblewrapBackend, state: Path, outside: Path, *, copied: bool
) -> None:
    before = kept(state)
    machine = await backend.create()
    await python(machine, TRAPS, str(outside))
    if copied:  # A directory that is in use stands in the way of switching layers.
        async with await machine.spawn(["sleep", "1000"]):
            commit = await machine.snapshot()
    else:
        commit = await machine.snapshot()
    restored = await backend.restore(commit.id)
    assert await sh(restored, "cat traps/absolute/below/file traps/relative/below/file") == ""
    links = await sh(restored, "readlink traps/absolute")
    assert links == f"{outside}\n"
    await restored.delete()
    await machine.delete()
    await backend.delete_commit(commit.id)
    assert (outside / "below/file").read_text() == "the host's"
    assert stat.S_IMODE((outside / "below").stat().st_mode) == 0o755
    assert kept(state) == before


async def test_a_set_user_id_program_of_a_machine_is_out_of_reach_of_the_hosts_users(
    machine: Machine, state: Path
) -> None:
    await sh(machine, "cp /usr/bin/id id && chmod 6755 id && chmod 777 .")
    (program,) = (state / "bubblewrap/machines" / machine.id).rglob("workspace/id")
    assert program.stat().st_mode & stat.S_ISUID
    assert program.stat().st_uid != 0
    assert stat.S_IMODE((state / "bubblewrap").stat().st_mode) == 0o700
    if os.geteuid() == 0:
        with pytest.raises(PermissionError):
            await anyio.run_process([str(program)], user=STRANGER)


def test_a_state_directory_that_was_open_to_others_is_closed(tmp_path: Path) -> None:
    (tmp_path / "bubblewrap").mkdir()
    (tmp_path / "bubblewrap").chmod(0o777)
    BubblewrapBackend(tmp_path)
    assert stat.S_IMODE((tmp_path / "bubblewrap").stat().st_mode) == 0o700


async def test_what_was_mapped_into_memory_does_not_change_a_commit(
    backend: BubblewrapBackend, machine: Machine
) -> None:
    async with await machine.spawn(["python3", "-c", MAPPED]) as process:
        assert await process.stdout.receive() == b"mapped\n"
        commit = await machine.snapshot()
        await process.stdin.send(b"\n")
        assert await process.stdout.receive() == b"written\n"
        restored = await backend.restore(commit.id)
        assert await read_bytes(restored, "/workspace/file", length=10) == b"frozen"
        assert await read_bytes(machine, "/workspace/file", length=10) == b"forged"
    await restored.delete()


@pytest.mark.parametrize("copied", [False, True], ids=["switched", "copied"])
async def test_forged_attributes_of_overlays_show_nothing_else(
    backend: BubblewrapBackend, machine: Machine, *, copied: bool
) -> None:
    await python(machine, FORGED)
    if copied:
        async with await machine.spawn(["sleep", "1000"]):
            commit = await machine.snapshot()
    else:
        commit = await machine.snapshot()
    restored = await backend.restore(commit.id)
    for each in (machine, restored):
        assert (await sh(each, "find forged | sort; cat forged/file")).split() == [
            *("forged", "forged/empty", "forged/file", "forged/full", "forged/full/file"),
            "mine",
        ]
    await restored.delete()
