"""The system calls that no program in a machine needs, as a seccomp filter.

Namespaces and dropped capabilities already refuse most of what they do. The filter takes away the
kernel interfaces themselves, where past flaws let a process out of its namespaces. Refused calls
fail with EPERM, except `clone3`, which fails with ENOSYS so that C libraries fall back to `clone`,
whose flags can be seen here. Programs for another architecture, i386 among them, get ENOSYS.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

# Numbers: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
_SINCE_2019: Final = {
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "mount_setattr": 442,
    "open_tree_attr": 467,
}

_X86_64: Final = {
    "syslog": 103,
    "acct": 163,
    "settimeofday": 164,
    "mount": 165,
    "umount2": 166,
    "swapon": 167,
    "swapoff": 168,
    "reboot": 169,
    "pivot_root": 155,
    "iopl": 172,
    "ioperm": 173,
    "init_module": 175,
    "delete_module": 176,
    "quotactl": 179,
    "lookup_dcookie": 212,
    "clock_settime": 227,
    "kexec_load": 246,
    "add_key": 248,
    "request_key": 249,
    "keyctl": 250,
    "unshare": 272,
    "perf_event_open": 298,
    "fanotify_init": 300,
    "open_by_handle_at": 304,
    "setns": 308,
    "finit_module": 313,
    "kexec_file_load": 320,
    "bpf": 321,
    "userfaultfd": 323,
}

_AARCH64: Final = {
    "lookup_dcookie": 18,
    "umount2": 39,
    "mount": 40,
    "pivot_root": 41,
    "quotactl": 60,
    "acct": 89,
    "unshare": 97,
    "kexec_load": 104,
    "init_module": 105,
    "delete_module": 106,
    "clock_settime": 112,
    "syslog": 116,
    "reboot": 142,
    "settimeofday": 170,
    "add_key": 217,
    "request_key": 218,
    "keyctl": 219,
    "swapon": 224,
    "swapoff": 225,
    "perf_event_open": 241,
    "fanotify_init": 262,
    "open_by_handle_at": 265,
    "setns": 268,
    "finit_module": 273,
    "bpf": 280,
    "userfaultfd": 282,
    "kexec_file_load": 294,
}

CLONE3: Final = 435
X32_BIT: Final = 0x4000_0000
"""Set in the numbers of x86-64's 32-bit calls, which would go round the filter."""

NEW_NAMESPACES: Final = 0x7E02_0080
"""The flags of clone that make a namespace: user, mount, PID, network, IPC, UTS, cgroup, time."""

# (audit number of the architecture, number of clone, calls that are refused)
_ARCHITECTURES: Final[Mapping[str, tuple[int, int, Mapping[str, int]]]] = {
    "x86_64": (0xC000_003E, 56, {**_X86_64, **_SINCE_2019}),
    "aarch64": (0xC000_00B7, 220, {**_AARCH64, **_SINCE_2019}),
}

# Classic BPF, from linux/bpf_common.h and linux/seccomp.h.
LOAD: Final = 0x20
JUMP_EQUAL: Final = 0x15
JUMP_ABOVE_OR_EQUAL: Final = 0x35
JUMP_ANY_BIT: Final = 0x45
RETURN: Final = 0x06
ALLOW: Final = 0x7FFF_0000
FAIL: Final = 0x0005_0000
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16
"""Where these are in what the filter sees; of an argument, the low half."""


def refused() -> Mapping[str, int]:
    """The calls that are refused on this machine's architecture; none on an unknown one."""
    machine = os.uname().machine
    return _ARCHITECTURES[machine][2] if machine in _ARCHITECTURES else {}


def call_filter() -> bytes:
    """The filter for this machine's architecture; empty on an unknown one."""
    if os.uname().machine not in _ARCHITECTURES:
        return b""
    architecture, clone, calls = _ARCHITECTURES[os.uname().machine]
    program = [
        _step(LOAD, ARCHITECTURE),
        _step(JUMP_EQUAL, architecture, 1, 0),
        _step(RETURN, FAIL | errno.ENOSYS),
        _step(LOAD, NUMBER),
        _step(JUMP_ABOVE_OR_EQUAL, X32_BIT, 0, 1),
        _step(RETURN, FAIL | errno.ENOSYS),
        _step(JUMP_EQUAL, CLONE3, 0, 1),
        _step(RETURN, FAIL | errno.ENOSYS),
    ]
    for number in sorted(calls.values()):
        program += [_step(JUMP_EQUAL, number, 0, 1), _step(RETURN, FAIL | errno.EPERM)]
    program += [
        _step(JUMP_EQUAL, clone, 0, 3),
        _step(LOAD, FIRST_ARGUMENT),
        _step(JUMP_ANY_BIT, NEW_NAMESPACES, 0, 1),
        _step(RETURN, FAIL | errno.EPERM),
        _step(RETURN, ALLOW),
    ]
    return b"".join(program)


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One instruction; jumps count the instructions that are skipped."""
    return struct.pack("=HBBI", code, if_true, if_false, value)
