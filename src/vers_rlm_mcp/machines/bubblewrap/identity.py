"""The host's ids of a machine's users, and mounts that show files under the machine's ids.

If this process is root, machines run in their own range of ids: their root is an unused id without
rights on the host, and id-mapped mounts show it the base as its own. Otherwise a machine's root is
the user of this process, other owners' files appear as those of the user `nobody`, and system
directories stay read-only.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FIRST_ID: Final = 0x7000_0000
"""Just above what systemd gives to containers, far above what distributions give to users."""

ID_COUNT: Final = 65536

# Numbers from asm-generic/unistd.h, the same on every architecture; flags from linux/mount.h.
SYS_OPEN_TREE: Final = 428
SYS_MOUNT_SETATTR: Final = 442
AT_FDCWD: Final = -100
AT_EMPTY_PATH: Final = 0x1000
OPEN_TREE_CLONE: Final = 1
MOUNT_ATTR_RDONLY: Final = 0x1
MOUNT_ATTR_IDMAP: Final = 0x100000
MS_PRIVATE: Final = 1 << 18

CAP_SYS_ADMIN: Final = 21

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttributes(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "user_namespace")
    ]


@cache
def may_map_ids() -> bool:
    """Whether this process may give machines a range of ids: it is root with CAP_SYS_ADMIN."""
    with open("/proc/self/status") as file:  # noqa: PTH123 - a kernel file
        effective = next(line for line in file if line.startswith("CapEff:"))
    return os.geteuid() == 0 and bool(int(effective.split()[1], 16) >> CAP_SYS_ADMIN & 1)


def give(descriptors: Sequence[int]) -> None:
    """Make a machine the owner of pipes, so that it can open /dev/stdout and the like."""
    if may_map_ids():
        for descriptor in descriptors:
            os.fchown(descriptor, FIRST_ID, FIRST_ID)


def write_maps(pid: int) -> None:
    """Map the range of ids into the user namespace that a process has just made."""
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/{pid}/{name}", "w") as file:  # noqa: PTH123 - a kernel file
            file.write(f"0 {FIRST_ID} {ID_COUNT}\n")


@dataclass(frozen=True, slots=True)
class Attachment:
    """A directory of the host that is mounted for a machine's PID 1."""

    source: Path
    target: str
    """Relative to PID 1's hidden directory."""
    writable: bool = False
    mapped: bool = False
    """Whether its files belong to the host's ids and must be shown under the machine's."""


def detached_mount(attachment: Attachment, user_namespace: int) -> int:
    """Open a detached copy of a mount, for the machine to attach. Raises OSError."""
    source = os.fsencode(attachment.source)
    flags = OPEN_TREE_CLONE | os.O_CLOEXEC
    descriptor = _check(_libc.syscall(ctypes.c_long(SYS_OPEN_TREE), AT_FDCWD, source, flags))
    try:
        attributes = _MountAttributes(propagation=MS_PRIVATE)
        if not attachment.writable:
            attributes.set |= MOUNT_ATTR_RDONLY
        if attachment.mapped:
            attributes.set |= MOUNT_ATTR_IDMAP
            attributes.user_namespace = user_namespace
        size = ctypes.c_size_t(ctypes.sizeof(attributes))
        number = ctypes.c_long(SYS_MOUNT_SETATTR)
        argument = ctypes.byref(attributes)
        _check(_libc.syscall(number, descriptor, b"", AT_EMPTY_PATH, argument, size))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
