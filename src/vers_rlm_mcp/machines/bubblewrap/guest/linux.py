"""The system calls that Python does not offer, through ctypes."""

from __future__ import annotations

import ctypes
import os

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_MOVE = 0x2000
MNT_DETACH = 2
MOVE_MOUNT_F_EMPTY_PATH = 4
AT_FDCWD = -100

PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
SECCOMP_MODE_FILTER = 2

# Numbers added after 2019 are the same on every architecture.
SYS_MOVE_MOUNT = 429
SYS_CLOSE_RANGE = 436
HIGHEST_DESCRIPTOR = 0xFFFFFFFF

# These differ, as they came before that.
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
SYS_KCMP = {"x86_64": 312, "aarch64": 272}
KCMP_FILES, KCMP_FS = 2, 3
SYS_KEYCTL = {"x86_64": 250, "aarch64": 219}
KEYCTL_JOIN_SESSION_KEYRING = 1

CAPABILITY_VERSION = 0x20080522
LAST_CAPABILITY = 63

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def mount(
    source: bytes, target: bytes, kind: bytes, flags: int = 0, options: bytes | None = None
) -> None:
    """Mount something. Relative paths count from the working directory."""
    _check(_libc.mount(source, target, kind, flags, options), f"mount on {os.fsdecode(target)}")


def remount(target: bytes, flags: int) -> None:
    """Change the flags of one mount, leaving its file system alone.

    Read-only is refused with EBUSY while a file is open for writing through this mount.
    """
    mount(b"none", target, b"", MS_REMOUNT | MS_BIND | MS_NOSUID | MS_NODEV | flags)


def move_mount(source: int, target: bytes) -> None:
    """Attach a detached mount."""
    number = ctypes.c_long(SYS_MOVE_MOUNT)
    result = _libc.syscall(number, source, b"", AT_FDCWD, target, MOVE_MOUNT_F_EMPTY_PATH)
    _check(result, f"attach {os.fsdecode(target)}")


def detach(target: bytes) -> None:
    """Take a mount out of the tree; it lives on as long as something uses it."""
    _check(_libc.umount2(target, MNT_DETACH), f"unmount {os.fsdecode(target)}")


def pivot_root(new: bytes, old: bytes) -> None:
    """Make `new` the root of this mount namespace and hang the old one in at `old`."""
    number = ctypes.c_long(SYS_PIVOT_ROOT[os.uname().machine])
    _check(_libc.syscall(number, new, old), "pivot_root")


def sethostname(name: bytes) -> None:
    """Name this UTS namespace."""
    _check(_libc.sethostname(name, len(name)), "sethostname")


def forget_keys() -> None:
    """Leave the session keyring that was inherited from the host."""
    number = ctypes.c_long(SYS_KEYCTL[os.uname().machine])
    _libc.syscall(number, KEYCTL_JOIN_SESSION_KEYRING, None)  # A kernel without keys has none.


def set_undumpable() -> None:
    """Keep processes without CAP_SYS_PTRACE from looking into this one."""
    _check(_libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "PR_SET_DUMPABLE")


def shares_files(thread: int, other: int) -> bool:
    """Whether two threads have the same descriptors and working directory, as is usual."""
    call = ctypes.c_long(SYS_KCMP[os.uname().machine])
    return all(
        _libc.syscall(call, thread, other, kind, 0, 0) == 0 for kind in (KCMP_FILES, KCMP_FS)
    )


def close_from(first: int) -> None:
    """Close every descriptor from `first` on.

    Not up to the limit on descriptors: programs may lower that of another process of their user.
    """
    number = ctypes.c_long(SYS_CLOSE_RANGE)
    _check(_libc.syscall(number, first, HIGHEST_DESCRIPTOR, 0), "close_range")


def keep_capabilities(kept: int) -> None:
    """Give up every capability that is not in the bit set `kept`, for good."""
    for number in range(LAST_CAPABILITY + 1):
        if not kept >> number & 1:
            _libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)  # Past the kernel's last one: EINVAL.
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    low, high = kept & 0xFFFFFFFF, kept >> 32
    data = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)
    _check(_libc.capset(header, data), "capset")


class _Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("program", ctypes.c_char_p)]


def filter_calls(program: bytes) -> None:
    """Install a seccomp filter, given as classic BPF instructions of 8 bytes each."""
    if program:
        argument = ctypes.byref(_Filter(len(program) // 8, program))
        _check(_libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, argument), "PR_SET_SECCOMP")
