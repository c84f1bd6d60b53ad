"""What a machine may write is bounded, wherever programs hide it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

from vers_rlm_mcp.machines import MachineSpec, run_command

if TYPE_CHECKING:
    from vers_rlm_mcp.machines.bubblewrap import BubblewrapBackend

SECONDS = 60.0
CHAIN_SECONDS = 15.0
ALLOWED = 64
"""MiB that the machine may write."""

TOO_MUCH = 512
"""MiB: the watchdog may be late by some, and never by as much."""

WRITE = """
import ctypes, os, signal, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
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

OTHERS = """
def others():
    own = os.getpid()
    while True:
        yield [int(name) for name in os.listdir("/proc")
               if name.isdigit() and int(name) not in (1, parent, own)]
def disturb(act):
    for pids in others():
        if os.getppid() != parent:
            os._exit(0)
        for pid in pids:
            try:
                act(pid)
            except OSError:
                pass
parent = os.getpid()
"""

WHERE_COUNTING_IS_KILLED = (
    OTHERS
    + """
if os.fork() == 0:
    disturb(lambda pid: os.kill(pid, signal.SIGKILL))
def more(number):
    write(f"file{number}").close()
"""
)

WHERE_COUNTING_IS_STOPPED = (
    OTHERS
    + """
if os.fork() == 0:
    disturb(lambda pid: os.kill(pid, signal.SIGSTOP))
def more(number):
    write(f"file{number}").close()
"""
)

WHERE_COUNTING_IS_SLOWED = """
import resource
for act in (
    lambda: os.setpriority(os.PRIO_PROCESS, 1, 19),
    lambda: open("/proc/1/autogroup", "w").write("19"),
    lambda: os.sched_setscheduler(1, os.SCHED_IDLE, os.sched_param(0)),
    lambda: resource.prlimit(1, resource.RLIMIT_NOFILE, (20, 20)),
):
    try:
        act()
    except OSError:
        pass
for _ in range(4):
    if os.fork() == 0:
        while os.getppid() != 1:
            pass
        os._exit(0)
def more(number):
    write(f"file{number}").close()
"""

MAPPED = """
import mmap
def more(number):
    write("file").close()
    with open("file", "r+b") as file:
        kept.append(libc.mmap(None, SIZE, 3, 1, file.fileno(), 0))
    os.unlink("file")
"""

MAPPED_IN_PART = MAPPED.replace("SIZE", "4096")
MAPPED_WHOLE = MAPPED.replace("SIZE", "4 << 20")

MAPPED_BEFORE_IT_IS_FILLED = """
def more(number):
    with open("file", "w+b") as file:
        file.truncate(4 << 20)
        address = libc.mmap(None, 4 << 20, 3, 1, file.fileno(), 0)
    os.unlink("file")
    ctypes.memset(address, 1, 4 << 20)
    libc.munmap(ctypes.c_void_p(address + 4096), (4 << 20) - 4096)
"""

KEPT_BY_A_PROCESS_WITHOUT_A_MAIN_THREAD = """
import threading
parent = os.getpid()
def wait():
    while os.getppid() == parent:
        time.sleep(0.1)
    os._exit(0)
def more(number):
    file = write("file")
    os.unlink("file")
    if os.fork() == 0:
        threading.Thread(target=wait).start()
        libc.syscall(60 if os.uname().machine == "x86_64" else 93, 0)
    file.close()
"""

IN_TRANSIT = """
import socket
def send(end, sent):
    socket.send_fds(end, [b"x"], [sent.fileno()])
def more(number):
    file = write("file")
    os.unlink("file")
    pair = socket.socketpair()
    send(pair[0], file)
    file.close()
    kept.append(pair)
"""

IN_TRANSIT_WITHIN_IN_TRANSIT = (
    IN_TRANSIT
    + """
alone = more
outer = socket.socketpair()
def more(number):
    alone(number)
    for end in kept.pop():
        send(outer[0], end)
        end.close()
"""
)

BEING_SENT = """
import socket, threading
def more(number):
    write("file").close()
    file = open("file", "rb")
    os.unlink("file")
    pair = socket.socketpair()
    kept.append(pair)
    threading.Thread(target=libc.sendfile, daemon=True,
                     args=(pair[0].fileno(), file.fileno(), None, 4 << 20)).start()
    pair[1].recv(1, socket.MSG_PEEK)
    file.close()
"""

ATTRIBUTES = """
def more(number):
    for index in range(64):
        name = f"{number}-{index}"
        open(name, "w").close()
        os.setxattr(name, "user.x", bytes(3900))
"""

EMPTY_FILES = """
def more(number):
    for index in range(64):
        open(f"{number}-{index}", "w").close()
"""

EMPTY_DIRECTORIES = """
def more(number):
    for index in range(64):
        os.mkdir(f"{number}-{index}")
"""

ALLOCATED = """
names = iter(range(1 << 30))
def allocate(mode, size):
    with open(str(next(names)), "w+b") as file:
        if mode == 0:
            file.truncate(size)
        if libc.fallocate(file.fileno(), mode, ctypes.c_long(0), ctypes.c_long(size)):
            raise OSError("refused")
"""

ALLOCATED_PAST_THE_END = (
    ALLOCATED
    + """
def more(number):
    allocate(1, 4 << 20)
"""
)

ALLOCATED_WITHIN_HOLES = (
    ALLOCATED
    + """
def more(number):
    allocate(0, 4 << 20)
"""
)

BY_A_CHAIN_OF_PROCESSES = """
for generation in range(1 << 30):
    if os.fork():
        os._exit(0)
    os.setsid()
    try:
        write(f"file{generation}").close()
    except (OSError, AssertionError):
        open(f"empty{generation}", "w").close()
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


HIDDEN = {
    "deep": TOO_DEEP_FOR_A_PATH,
    "removed": REMOVED_BUT_OPEN,
    "killed": WHERE_COUNTING_IS_KILLED,
    "stopped": WHERE_COUNTING_IS_STOPPED,
    "slowed": WHERE_COUNTING_IS_SLOWED,
    "mapped": MAPPED_WHOLE,
    "mapped in part": MAPPED_IN_PART,
    "filled when mapped": MAPPED_BEFORE_IT_IS_FILLED,
    "no main thread": KEPT_BY_A_PROCESS_WITHOUT_A_MAIN_THREAD,
    "in transit": IN_TRANSIT,
    "in nested transit": IN_TRANSIT_WITHIN_IN_TRANSIT,
    "being sent": BEING_SENT,
    "attributes": ATTRIBUTES,
    "empty files": EMPTY_FILES,
    "empty directories": EMPTY_DIRECTORIES,
    "past the end": ALLOCATED_PAST_THE_END,
    "within holes": ALLOCATED_WITHIN_HOLES,
}


SMALL = ("attributes", "empty files", "empty directories")
"""What takes many files, which would take long to make and to delete."""


@pytest.mark.parametrize("hidden", HIDDEN)
async def test_no_more_can_be_written_than_allowed(backend: BubblewrapBackend, hidden: str) -> None:
    allowed = ALLOWED // 4 if hidden in SMALL else ALLOWED
    machine = await backend.create(MachineSpec(fs_size_mib=allowed))
    result = await run_command(
        machine, ["python3", "-c", WRITE + HIDDEN[hidden] + LOOP], timeout=SECONDS
    )
    await machine.delete()
    assert "never stopped" not in result.stdout.text
    assert result.stdout.text.startswith("stopped") or (result.status and result.status.signal)


async def test_a_chain_of_processes_that_each_write_something_stays_below_the_limit(
    backend: BubblewrapBackend,
) -> None:
    machine = await backend.create(MachineSpec(fs_size_mib=ALLOWED))
    await run_command(machine, ["python3", "-c", WRITE + BY_A_CHAIN_OF_PROCESSES], timeout=SECONDS)
    # PID 1 mostly outruns it within this time, but need not.
    with anyio.move_on_after(CHAIN_SECONDS):
        while (await run_command(machine, ["pgrep", "python3"], timeout=SECONDS)).stdout.total:
            pass
    taken = await run_command(machine, ["du", "-sm", "/workspace"], timeout=SECONDS)
    assert int(taken.stdout.text.split()[0]) < TOO_MUCH
    await machine.delete()
