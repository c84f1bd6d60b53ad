"""The filter of system calls names the right ones, on every architecture that it knows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vers_rlm_mcp.machines import run_command
from vers_rlm_mcp.machines.bubblewrap import seccomp

if TYPE_CHECKING:
    from vers_rlm_mcp.machines import Machine

EPERM = 1
SECONDS = 30.0

HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
"""The kernel's own numbers; those of aarch64 are the generic ones."""

CALL = """
import ctypes, json, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(number):
    ctypes.set_errno(0)
    return [libc.syscall(ctypes.c_long(number), 0, 0, 0, 0, 0), ctypes.get_errno()]
print(json.dumps([call(int(number)) for number in sys.argv[1:]]))
"""

ORDINARY = """
import os, resource, socket, subprocess, threading
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    for family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6):
        socket.socket(family, kind | socket.SOCK_CLOEXEC).close()
socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP).close()
socket.if_nameindex()
socket.socketpair()
assert socket.getaddrinfo("localhost", 80)
threading.Thread(target=int).start()
subprocess.run(["true"], check=True)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
assert resource.prlimit(os.getpid(), resource.RLIMIT_NOFILE)[0] == soft - 1
print("all well")
"""


async def test_calls_that_nothing_needs_are_refused(machine: Machine) -> None:
    calls = seccomp.refused()
    argv = ["python3", "-c", CALL, *map(str, calls.values())]
    results = json.loads((await run_command(machine, argv, timeout=SECONDS)).stdout.text)
    told = dict(zip(calls, results, strict=True))
    assert {name for name, result in told.items() if result != [-1, EPERM]} == set()


async def test_ordinary_programs_do_not_notice_the_filter(machine: Machine) -> None:
    result = await run_command(machine, ["python3", "-c", ORDINARY], timeout=SECONDS)
    assert (result.stdout.text, result.stderr.text) == ("all well\n", "")


@pytest.mark.parametrize("machine_type", HEADERS)
def test_the_numbers_are_the_kernels(machine_type: str) -> None:
    header = HEADERS[machine_type]
    if not header.exists():
        pytest.skip(f"the kernel's headers are not installed: no {header}")
    defined = re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text(), re.MULTILINE)
    numbers = {name: int(number) for name, number in defined}
    about = seccomp.ARCHITECTURES[machine_type]
    named = {**about.refused, **about.checked, "clone3": seccomp.CLONE3}
    newer = {name for name in named if name not in numbers}
    assert newer <= {"open_tree_attr"}
    assert {name: numbers[name] for name in named if name not in newer} == {
        name: number for name, number in named.items() if name not in newer
    }
