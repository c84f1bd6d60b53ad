"""Paths in a machine that are not what they seem, against what the host reads and writes there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from vers_rlm_mcp.errors import MachineError, PathRefused
from vers_rlm_mcp.machines import read_bytes, run_command
from vers_rlm_mcp.machines.bubblewrap import BubblewrapBackend
from vers_rlm_mcp.machines.daemon import machine as daemon_machine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from attacks import Bait

    from vers_rlm_mcp.machines import Machine

SECONDS = 30.0
SOON = 10.0
"""Seconds within which a refusal must come: it takes milliseconds."""

ROUNDS = 60
"""Reads and writes against a racing loop, in which the loop swaps some thousand times."""

TRAPS = """
mkdir -p traps/directory && cd traps
mkfifo fifo
python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("socket")'
ln -s /dev/zero device
ln -s loop loop
ln -s /proc/1/environ environ
ln -s /proc/1/mem memory
ln -s /proc/kmsg messages
ln -s /dev/stdin stdin
mkdir -p $(dirname {secret})
ln -s {secret} host
ln -s ../../../../../../../../../../{secret} climbing
ln -s /.vers/.vers/machine hidden
"""

SWAP = """
import itertools, os, sys
os.makedirs("/workspace/race", exist_ok=True)
os.chdir("/workspace/race")
with open("regular", "w") as file:
    file.write("mine")
os.mkfifo("fifo")
targets = sys.argv[1:] + ["/proc/1/environ", "/dev/zero", "/proc/self/mem", "fifo", "/etc"]
print("racing", flush=True)
for target in itertools.cycle(targets):
    os.link("regular", "a"); os.rename("a", "path")
    os.symlink(target, "b"); os.rename("b", "path")
    os.link("fifo", "c"); os.rename("c", "path")
"""

SCAN = """
import os
found = set()
usual = ("pipe:", "/dev/null", "/proc/", "/workspace", "/run", "/usr", "/lib", "/etc/ld.so.cache")
print("scanning", flush=True)
while not os.path.exists("/run/stop"):
    for pid in os.listdir("/proc"):
        if not pid.isdigit():
            continue
        for name in ("cwd", "root", "exe"):
            try:
                found.add((name, os.readlink(f"/proc/{pid}/{name}")))
            except OSError:
                pass
        try:
            for number in os.listdir(f"/proc/{pid}/fd"):
                found.add(("fd", os.readlink(f"/proc/{pid}/fd/{number}")))
        except OSError:
            pass
for kind, link in sorted(found):
    if kind == "fd" and not link.startswith(usual):
        print(kind, link)
    if kind in ("cwd", "root") and ".vers" in link or link in ("live", "machine"):
        print(kind, link)
"""


STOP = """
import os, signal
print("stopping", flush=True)
while True:
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in (1, os.getpid()):
            try:
                os.kill(int(name), signal.SIGSTOP)
            except ProcessLookupError:
                pass
"""


@pytest.fixture(scope="module")
async def traps(state: Path, bait: Bait) -> AsyncIterator[Machine]:
    """One machine for all that is refused anyway."""
    async with BubblewrapBackend(state) as backend:
        machine = await backend.create()
        script = TRAPS.format(secret=bait.paths[0])
        assert (await run_command(machine, script, timeout=SECONDS)).stderr.text == ""
        yield machine
        await machine.delete()


def untouched(bait: Bait) -> bool:
    """Whether the host's files are what they were."""
    return all(Path(path).read_text() == bait.secret for path in bait.paths[:2])


REFUSED = (
    *("directory", "fifo", "socket", "device", "loop", "environ", "memory", "messages", "stdin"),
    *("host", "climbing", "hidden"),
)


@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_no_file_of_the_machine_cannot_be_read(traps: Machine, name: str) -> None:
    with anyio.fail_after(SOON), pytest.raises(PathRefused):
        await read_bytes(traps, f"/workspace/traps/{name}", length=100)


@pytest.mark.parametrize("name", [*REFUSED[:-3], "../../dev/new", "../../.vers/new", "../../new"])
async def test_nothing_but_a_file_of_the_machine_can_be_written(traps: Machine, name: str) -> None:
    with anyio.fail_after(SOON), pytest.raises(PathRefused):
        await traps.write(f"/workspace/traps/{name}", b"x")


async def test_a_link_to_the_hosts_file_makes_a_file_of_the_machine(
    traps: Machine, bait: Bait
) -> None:
    await traps.write("/workspace/traps/host", b"mine")
    assert untouched(bait)
    assert await read_bytes(traps, bait.paths[0], length=100) == b"mine"


async def test_links_that_are_swapped_during_a_call_lead_nowhere_else(
    machine: Machine, bait: Bait
) -> None:
    refused = 0
    async with await machine.spawn(["python3", "-c", SWAP, *bait.paths]) as racer:
        assert await racer.stdout.receive() == b"racing\n"
        with anyio.fail_after(SECONDS):
            for _ in range(ROUNDS):
                try:
                    content = await read_bytes(machine, "/workspace/race/path", length=50)
                    assert content in (b"mine", b"")
                    await machine.write("/workspace/race/path", b"mine")
                except (PathRefused, MachineError):
                    refused += 1
    assert refused, "the race never hit: the loop was too slow"
    assert untouched(bait)


async def test_no_moment_of_a_programs_start_shows_more(machine: Machine) -> None:
    """A fork of PID 1 begins with its directory and descriptors, and gives them up."""
    async with await machine.spawn(["python3", "-c", SCAN]) as scanner:
        assert await scanner.stdout.receive() == b"scanning\n"
        for _ in range(ROUNDS):
            await machine.write("/run/file", b"x")
            await read_bytes(machine, "/run/file", length=1)
            await run_command(machine, ["true"], timeout=SECONDS)
        await machine.write("/run/stop", b"")
        seen = b""
        async for chunk in scanner.stdout:
            seen += chunk
        assert seen.decode() == ""
        assert (await scanner.wait()).ok


async def test_a_program_that_is_the_binary_of_pid_1_cannot_change_it(machine: Machine) -> None:
    """The way of CVE-2019-5736: to be started as one's own starter."""
    change = """
import os
for act in (lambda: os.open("/proc/self/exe", os.O_RDWR), lambda: os.truncate("/proc/self/exe", 0),
            lambda: os.chmod("/proc/self/exe", 0o777)):
    try:
        act()
        print("changed")
    except OSError:
        pass
print(os.readlink("/proc/self/exe"))
"""
    argv = ["/proc/self/exe", "-I", "-S", "-c", change]
    result = await run_command(machine, argv, timeout=SECONDS)
    assert result.stdout.text.startswith("/.vers/"), result.stderr.text
    assert "changed" not in result.stdout.text


async def test_fewer_descriptors_leave_none_of_pid_1_open(machine: Machine) -> None:
    """PID 1 must not go by its limit when it closes what it has open."""
    lower = "import resource as r; r.prlimit(1, r.RLIMIT_NOFILE, (12, 12))"
    await run_command(machine, ["python3", "-c", lower], timeout=SECONDS)
    opened = "import os; print(sorted(map(int, os.listdir('/proc/self/fd'))))"
    result = await run_command(machine, ["python3", "-c", opened], timeout=SECONDS)
    assert result.stdout.text == "[0, 1, 2, 3]\n", result.stderr.text


async def test_a_program_that_stops_all_others_makes_no_one_wait_indefinitely(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_machine, "STALL_SECONDS", 0.5)
    large = bytes(4 << 20)

    async def act_again_and_again() -> None:
        while True:
            await machine.write("/run/large", large)
            await read_bytes(machine, "/run/large", length=len(large))
            async with await machine.spawn(["true"]):
                pass

    async with await machine.spawn(["python3", "-c", STOP]) as hostile:
        assert await hostile.stdout.receive() == b"stopping\n"
        with anyio.fail_after(SECONDS), pytest.raises(MachineError, match="nothing happened"):
            await act_again_and_again()
    await machine.write("/run/large", b"works again")
