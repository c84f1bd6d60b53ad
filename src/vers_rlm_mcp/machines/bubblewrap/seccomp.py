"""The system calls that no program in a machine needs, as a seccomp filter.

Namespaces and dropped capabilities already refuse most of what they do. The filter takes away the
kernel interfaces themselves, where past flaws let a process out of its namespaces. Refused calls
fail with EPERM. What programs can do without fails with ENOSYS, as on an older kernel: `clone3`, so
that C libraries fall back to `clone`, whose flags can be seen here; calls newer than this list; and
calls of other architectures, such as i386 and x32.
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
    "quotactl_fd": 443,
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
    "modify_ldt": 154,
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
FIRST_UNKNOWN: Final = 470
"""Above the last call of Linux 6.18. The x32 calls of x86-64, at 2^30, are above it as well."""

NEW_NAMESPACES: Final = 0x7E02_0080
"""The flags of clone that make a namespace: user, mount, PID, network, IPC, UTS, cgroup, time."""

FAMILIES: Final = (1, 2, 10, 16)
"""Unix, IPv4, IPv6, and the netlink by which C libraries ask for interfaces.

Of the others, some reach past the network namespace, as AF_VSOCK does to the hypervisor, and all
let the host load kernel modules.
"""

PROTOCOLS: Final = (0, 1, 6, 17, 58)
"""The usual one of the family, ICMP, TCP, UDP, ICMPv6; of netlink, 0 is for routes."""

PERSONALITIES: Final = (0, 8, 0x4_0000, 0xFFFF_FFFF)
"""Plain Linux, 32 bits, without address randomisation, as debuggers ask for; a mere question."""

NOT_ALLOCATING: Final = 0x2A
"""The modes of fallocate that punch holes into a file, take out a range, or insert one."""

PID_1: Final = 1
RLIMIT_CORE: Final = 4

# Classic BPF, from linux/bpf_common.h and linux/seccomp.h.
LOAD: Final = 0x20
JUMP_EQUAL: Final = 0x15
JUMP_ABOVE_OR_EQUAL: Final = 0x35
JUMP_ANY_BIT: Final = 0x45
RETURN: Final = 0x06
ALLOW: Final = 0x7FFF_0000
FAIL: Final = 0x0005_0000
"""Returns an error number; 0 means success."""

NUMBER, ARCHITECTURE, FIRST_ARGUMENT, ARGUMENT_SIZE, HIGH_HALF = 0, 4, 16, 8, 4
"""Their offsets in the data that the filter sees, and the size of an argument."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """What differs between architectures."""

    audit: int
    """Its number in linux/audit.h."""
    refused: Mapping[str, int]
    checked: Mapping[str, int]
    """The calls that are refused with some arguments only."""


ARCHITECTURES: Final = {
    "x86_64": Architecture(
        0xC000_003E,
        {**_X86_64, **_SINCE_2019},
        {
            "clone": 56,
            "socket": 41,
            "personality": 135,
            "setrlimit": 160,
            "fallocate": 285,
            "prlimit64": 302,
        },
    ),
    "aarch64": Architecture(
        0xC000_00B7,
        {**_AARCH64, **_SINCE_2019},
        {
            "clone": 220,
            "socket": 198,
            "personality": 92,
            "setrlimit": 164,
            "fallocate": 47,
            "prlimit64": 261,
        },
    ),
}


def refused() -> Mapping[str, int]:
    """The calls that are refused on this machine's architecture; none on an unknown one."""
    about = ARCHITECTURES.get(os.uname().machine)
    return about.refused if about else {}


@cache
def call_filter() -> bytes:
    """The filter for this machine's architecture; empty on an unknown one."""
    about = ARCHITECTURES.get(os.uname().machine)
    if about is None:
        return b""
    program = [
        _step(LOAD, ARCHITECTURE),
        _step(JUMP_EQUAL, about.audit, 1, 0),
        _step(RETURN, FAIL | errno.ENOSYS),
        _step(LOAD, NUMBER),
        _step(JUMP_ABOVE_OR_EQUAL, FIRST_UNKNOWN, 0, 1),
        _step(RETURN, FAIL | errno.ENOSYS),
        *_on(CLONE3, [_step(RETURN, FAIL | errno.ENOSYS)]),
    ]
    for number in sorted(about.refused.values()):
        program += _on(number, [_step(RETURN, FAIL | errno.EPERM)])
    for name, number in about.checked.items():
        program += _on(number, _CHECKS[name]())
    return b"".join([*program, _step(RETURN, ALLOW)])


# What is checked of one call. Each ends by returning, as the call's number is no longer loaded.


def _make_no_namespaces() -> list[bytes]:
    return [
        _argument(0),
        _step(JUMP_ANY_BIT, NEW_NAMESPACES, 0, 1),
        _step(RETURN, FAIL | errno.EPERM),
        _step(RETURN, ALLOW),
    ]


def _open_usual_sockets() -> list[bytes]:
    return [
        *_require(0, FAMILIES, errno.EAFNOSUPPORT),
        *_require(2, PROTOCOLS, errno.EPROTONOSUPPORT),
        _step(RETURN, ALLOW),
    ]


def _keep_personality() -> list[bytes]:
    return [*_require(0, PERSONALITIES, errno.EPERM), _step(RETURN, ALLOW)]


def _keep_core_limit() -> list[bytes]:
    """Only pretend to change it, as programs that guard secrets end when that fails."""
    return [
        _argument(0),
        _step(JUMP_EQUAL, RLIMIT_CORE, 0, 1),
        _step(RETURN, FAIL),
        _step(RETURN, ALLOW),
    ]


def _keep_limits_of_others() -> list[bytes]:
    """The same by the newer call, which can also ask; and PID 1, of our user, is left alone."""
    return [
        _argument(0),
        _step(JUMP_EQUAL, PID_1, 0, 1),
        _step(RETURN, FAIL | errno.EPERM),
        _argument(1),
        _step(JUMP_EQUAL, RLIMIT_CORE, 1, 0),
        _step(RETURN, ALLOW),
        _argument(2),
        _step(JUMP_EQUAL, 0, 0, 2),
        _argument(2, HIGH_HALF),
        _step(JUMP_EQUAL, 0, 1, 0),
        _step(RETURN, FAIL),
        _step(RETURN, ALLOW),
    ]


def _allocate_by_writing() -> list[bytes]:
    """The limit on the size of files does not hold what is allocated within a size, or past it.

    A call takes any amount at once; C libraries and programs then write instead.
    """
    return [
        _argument(1),
        _step(JUMP_ANY_BIT, NOT_ALLOCATING, 1, 0),
        _step(RETURN, FAIL | errno.EOPNOTSUPP),
        _step(RETURN, ALLOW),
    ]


_CHECKS: Final = {
    "clone": _make_no_namespaces,
    "socket": _open_usual_sockets,
    "personality": _keep_personality,
    "setrlimit": _keep_core_limit,
    "fallocate": _allocate_by_writing,
    "prlimit64": _keep_limits_of_others,
}


def _on(number: int, then: list[bytes]) -> list[bytes]:
    """Instructions for one call."""
    return [_step(JUMP_EQUAL, number, 0, len(then)), *then]


def _require(argument: int, values: Sequence[int], error: int) -> list[bytes]:
    """Fail unless an argument has one of some values."""
    tests = [_step(JUMP_EQUAL, value, len(values) - index, 0) for index, value in enumerate(values)]
    return [_argument(argument), *tests, _step(RETURN, FAIL | error)]


def _argument(number: int, half: int = 0) -> bytes:
    return _step(LOAD, FIRST_ARGUMENT + number * ARGUMENT_SIZE + half)


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One instruction; jumps count the instructions that are skipped."""
    return struct.pack("=HBBI", code, if_true, if_false, value)
