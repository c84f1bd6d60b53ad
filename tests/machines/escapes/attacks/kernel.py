"""Interfaces of the kernel, called where possible as the C library does, by its own numbers."""

from __future__ import annotations

import ctypes
import errno
import os
import time

from .attempt import Bait, attempt, call, check, libc, worked

FIRST_UNASSIGNED = 600
"""Above every system call of today and of the years to come."""

X32 = 0x4000_0000
SET_FREQUENCY = 2
"""ADJ_FREQUENCY of `adjtimex`."""


@attempt
def load_modules(bait: Bait) -> object:
    return worked({
        "init": lambda: check(libc.init_module(b"", 0, b"")),
        "delete": lambda: check(libc.delete_module(b"overlay", os.O_NONBLOCK)),
    })  # fmt: skip


@attempt
def set_the_clock(bait: Bait) -> object:
    now = (ctypes.c_long * 2)(int(time.time()), 0)
    frequency = ctypes.create_string_buffer(SET_FREQUENCY.to_bytes(4, "little"), 256)
    return worked({
        "time of day": lambda: check(libc.settimeofday(now, None)),
        "clock": lambda: check(libc.clock_settime(0, now)),
        "frequency": lambda: check(libc.adjtimex(frequency)),
        "clock's frequency": lambda: check(libc.clock_adjtime(0, frequency)),
    })  # fmt: skip


@attempt
def name_the_host(bait: Bait) -> object:
    return worked({
        "host": lambda: check(libc.sethostname(b"other", 5)),
        "domain": lambda: check(libc.setdomainname(b"other", 5)),
    })  # fmt: skip


@attempt
def read_the_kernels_messages(bait: Bait) -> object:
    buffer = ctypes.create_string_buffer(1024)
    return worked({
        "syslog": lambda: check(libc.klogctl(3, buffer, 1024)),
        "/proc/kmsg": lambda: os.open("/proc/kmsg", os.O_RDONLY | os.O_NONBLOCK),
        "/dev/kmsg": lambda: os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK),
    })  # fmt: skip


@attempt
def read_the_kernels_addresses(bait: Bait) -> object:
    found: list[str] = []
    for path in ("/proc/kallsyms", "/proc/iomem", "/proc/modules"):
        if os.path.exists(path):
            with open(path) as file:
                found += [line for line in file if "ffff" in line or "100000-" in line]
    return found[:3]


@attempt
def read_memory_of_the_host(bait: Bait) -> object:
    masked: list[str] = []
    names = ("kcore", "kpageflags", "kpagecount", "slabinfo", "vmallocinfo", "timer_list", "keys")
    for name in names:
        try:
            with open(f"/proc/{name}", "rb") as file:
                masked += [name] * bool(file.read(16))
        except OSError:
            continue
    return masked + [
        path for path in ("/dev/mem", "/dev/kmem", "/dev/port") if os.path.exists(path)
    ]


@attempt
def find_physical_addresses(bait: Bait) -> object:
    buffer = ctypes.create_string_buffer(b"here", 4096)
    with open("/proc/self/pagemap", "rb") as file:
        file.seek(ctypes.addressof(buffer) // 4096 * 8)
        return int.from_bytes(file.read(8), "little") & ((1 << 55) - 1)


@attempt
def count_processor_events(bait: Bait) -> object:
    attributes = ctypes.create_string_buffer((1).to_bytes(4, "little") + b"\x70", 112)
    return call(bait.numbers["perf_event_open"], attributes, -1, 0, -1, 0) > 0


@attempt
def load_a_program_into_the_kernel(bait: Bait) -> object:
    attributes = ctypes.create_string_buffer(128)
    return call(bait.numbers["bpf"], 0, attributes, 128) > 0


@attempt
def keep_keys_in_the_kernel(bait: Bait) -> object:
    add, control = bait.numbers["add_key"], bait.numbers["keyctl"]
    session, user = ctypes.c_int(-3), ctypes.c_int(-4)
    return worked({
        "add to the session": lambda: call(add, b"user", b"escape", b"x", 1, session),
        "add to the user's": lambda: call(add, b"user", b"escape", b"x", 1, user),
        "look up": lambda: call(control, 0, user, 0),
    })  # fmt: skip


@attempt
def submit_work_to_the_kernel_in_rings(bait: Bait) -> object:
    parameters = ctypes.create_string_buffer(120)
    return call(bait.numbers["io_uring_setup"], 8, parameters) > 0


@attempt
def handle_page_faults(bait: Bait) -> object:
    return call(bait.numbers["userfaultfd"], os.O_CLOEXEC) > 0


@attempt
def watch_file_systems(bait: Bait) -> object:
    return check(libc.fanotify_init(0, os.O_RDONLY)) > 0


@attempt
def swap_account_and_limit_for_the_whole_host(bait: Bait) -> object:
    return worked({
        "swap": lambda: check(libc.swapon(b"/workspace/swap", 0)),
        "accounting": lambda: check(libc.acct(b"/workspace/accounting")),
        "quota": lambda: check(libc.quotactl(0x800007 << 8, b"/dev/vda", 0, bytes(128))),
        "quota by descriptor": lambda: call(
            bait.numbers["quotactl_fd"], os.open("/", os.O_RDONLY), 0x800007 << 8, 0, bytes(128)
        ),
    })  # fmt: skip


@attempt
def use_ports_of_the_processor(bait: Bait) -> object:
    if os.uname().machine != "x86_64":
        return []
    return worked({
        "all": lambda: check(libc.iopl(3)),
        "some": lambda: check(libc.ioperm(0x70, 2, 1)),
    })  # fmt: skip


@attempt
def change_the_table_of_memory_segments(bait: Bait) -> object:
    if os.uname().machine != "x86_64":
        return []
    return call(bait.numbers["modify_ldt"], 0, ctypes.create_string_buffer(64), 64) >= 0


@attempt
def take_another_personality(bait: Bait) -> object:
    read_implies_exec, svr4 = 0x0400000, 0x0001
    return worked({
        "readable memory is executable": lambda: check(libc.personality(read_implies_exec)),
        "another system": lambda: check(libc.personality(svr4)),
    })  # fmt: skip


@attempt
def find_cgroups_devices_or_kernel_settings(bait: Bait) -> object:
    """The places from which a release agent, an event helper or a binary format could be set."""
    places = (
        *("/sys/kernel", "/sys/fs/cgroup", "/sys/class", "/sys/devices", "/sys/fs/bpf"),
        *("/proc/sys/fs/binfmt_misc/register", "/dev/fuse", "/dev/net/tun", "/dev/kvm"),
        *("/dev/vsock", "/dev/loop-control", "/dev/mapper", "/dev/vda", "/dev/sda", "/dev/input"),
    )
    return [path for path in places if os.path.exists(path)]


@attempt
def find_a_file_system_of_the_kernel_that_is_mounted(bait: Bait) -> object:
    dangerous = {"sysfs", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "bpf", "mqueue"}
    with open("/proc/self/mounts") as file:
        return [line for line in file if line.split()[2] in dangerous]


@attempt
def use_calls_that_nobody_has_checked(bait: Bait) -> object:
    """Those that came after the filter was written, or that exist under other numbers."""
    numbers = [*range(bait.numbers["first unknown"], FIRST_UNASSIGNED), 1023, 0x3FFF_FFFF]
    numbers += [X32 + number for number in (0, 56, 101, 165, 272, 310, 425, 512, 520, 546)]
    return [number for number in numbers if _error(number) != errno.ENOSYS]


def _error(number: int) -> int:
    try:
        return call(number, 0, 0, 0, 0, 0, 0)
    except OSError as error:
        return error.errno or 0
