"""Processes of the host, PID 1, and namespaces."""

from __future__ import annotations

import ctypes
import fcntl
import glob
import mmap
import os
import resource
import shutil
import signal
import subprocess
import termios

from .attempt import Bait, attempt, call, check, contains, libc, worked

NAMESPACES = {
    "mount": 0x00020000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "network": 0x40000000,
}
TIME_NAMESPACE = 0x80
PTRACE_ATTACH, PTRACE_SEIZE = 16, 0x4206
ALL_PROCESSES = -1


@attempt
def see_processes_of_the_host(bait: Bait) -> object:
    return contains(bait.secret, glob.glob("/proc/[0-9]*/cmdline"))


@attempt
def read_the_environment_of_any_process(bait: Bait) -> object:
    return contains(bait.secret, [*glob.glob("/proc/[0-9]*/environ"), "/proc/self/environ"])


@attempt
def signal_processes_of_the_host(bait: Bait) -> object:
    signal.signal(signal.SIGURG, signal.SIG_IGN)
    os.kill(ALL_PROCESSES, signal.SIGURG)
    try:
        os.kill(bait.pid, signal.SIGKILL)
    except ProcessLookupError:
        return []
    with open(f"/proc/{bait.pid}/comm") as file:
        raise AssertionError(f"its number is that of a process here, {file.read()}")


@attempt
def look_into_pid_1(bait: Bait) -> object:
    names = ("mem", "maps", "environ", "auxv", "exe", "cwd", "root", "fd/0", "stack", "syscall")
    spaces = [f"ns/{os.path.basename(path)}" for path in glob.glob("/proc/self/ns/*")]

    def look(name: str) -> object:
        descriptor = os.open(f"/proc/1/{name}", os.O_RDONLY)
        return name in ("cwd", "root") or os.read(descriptor, 1)

    return worked({name: lambda name=name: look(name) for name in (*names, *spaces)})


@attempt
def use_the_descriptors_of_pid_1(bait: Bait) -> object:
    numbers = os.listdir("/proc/1/fd")
    return worked({
        **{f"see {n}": lambda n=n: os.readlink(f"/proc/1/fd/{n}") for n in numbers},
        **{f"open {n}": lambda n=n: os.open(f"/proc/1/fd/{n}", os.O_RDONLY | os.O_NONBLOCK)
           for n in numbers},
    })  # fmt: skip


@attempt
def change_the_memory_of_pid_1(bait: Bait) -> object:
    return worked({
        path: lambda path=path: os.close(os.open(f"/proc/1/{path}", os.O_WRONLY))
        for path in ("mem", "task/1/mem", "exe")
    })  # fmt: skip


@attempt
def change_the_map_of_users(bait: Bait) -> object:
    def write(path: str) -> None:
        with open(path, "w") as file:
            file.write("0 0 1")

    return worked({path: lambda path=path: write(path) for path in
                   ("/proc/1/uid_map", "/proc/1/gid_map", "/proc/self/uid_map")})  # fmt: skip


@attempt
def trace_pid_1(bait: Bait) -> object:
    return worked({
        "attach": lambda: check(libc.ptrace(PTRACE_ATTACH, 1, None, None)),
        "seize": lambda: check(libc.ptrace(PTRACE_SEIZE, 1, None, None)),
    })  # fmt: skip


class _Area(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]


@attempt
def copy_the_memory_of_pid_1(bait: Bait) -> object:
    buffer = ctypes.create_string_buffer(64)
    own = _Area(ctypes.addressof(buffer), 64)
    theirs = _Area(0x400000, 64)

    def copy(function: str) -> int:
        arguments = (1, ctypes.byref(own), 1, ctypes.byref(theirs), 1, 0)
        return check(libc[function](*arguments))

    names = ("process_vm_readv", "process_vm_writev")
    return worked({name: lambda name=name: copy(name) for name in names})


@attempt
def take_descriptors_of_pid_1(bait: Bait) -> object:
    pid_1 = os.pidfd_open(1)
    take = bait.numbers["pidfd_getfd"]
    return worked({str(number): lambda number=number: call(take, pid_1, number, 0)
                   for number in range(16)})  # fmt: skip


@attempt
def compare_with_pid_1(bait: Bait) -> object:
    return call(bait.numbers["kcmp"], 1, os.getpid(), 1, 0, 0) >= 0


@attempt
def change_the_limits_of_pid_1(bait: Bait) -> object:
    """With fewer descriptors allowed, PID 1 might leave some open in what it starts."""
    soft, hard = resource.prlimit(1, resource.RLIMIT_NOFILE)
    resource.prlimit(1, resource.RLIMIT_NOFILE, (soft, hard))
    return True


@attempt
def change_how_pid_1_is_treated(bait: Bait) -> object:
    def write(path: str) -> None:
        with open(path, "w") as file:
            file.write("10")

    places = ("/proc/1", "/proc/1/task/1", f"/proc/{os.getpid()}/../1")
    return worked({
        f"{place}/{name}": lambda path=f"{place}/{name}": write(path)
        for place in places for name in ("oom_score_adj", "autogroup")
    })  # fmt: skip


@attempt
def end_pid_1(bait: Bait) -> object:
    for number in range(1, signal.NSIG):
        os.kill(1, number)
    with open("/proc/1/stat") as file:
        return file.read().rpartition(")")[2].split()[0] not in "SRD"


@attempt
def make_namespaces(bait: Bait) -> object:
    kinds = {**NAMESPACES, "time": TIME_NAMESPACE}
    return worked({kind: lambda flag=flag: check(libc.unshare(flag))
                   for kind, flag in kinds.items()})  # fmt: skip


@attempt
def start_a_process_in_new_namespaces(bait: Bait) -> object:
    def clone(flags: int) -> None:
        if call(bait.numbers["clone"], flags | signal.SIGCHLD, 0, 0, 0, 0) == 0:
            os._exit(0)

    kinds = {**NAMESPACES, "user and mount": NAMESPACES["user"] | NAMESPACES["mount"]}
    return worked({kind: lambda flag=flag: clone(flag) for kind, flag in kinds.items()})


@attempt
def start_a_process_where_the_flags_cannot_be_seen(bait: Bait) -> object:
    arguments = (ctypes.c_uint64 * 11)(NAMESPACES["user"], 0, 0, 0, signal.SIGCHLD)
    size = ctypes.c_size_t(ctypes.sizeof(arguments))
    if call(bait.numbers["clone3"], ctypes.byref(arguments), size) == 0:
        os._exit(0)
    return True


@attempt
def enter_other_namespaces(bait: Bait) -> object:
    def enter(path: str) -> int:
        return check(libc.setns(os.open(path, os.O_RDONLY), 0))

    spaces = glob.glob("/proc/self/ns/*")
    return worked({
        **{path: lambda path=path: enter(path) for path in spaces},
        "PID 1": lambda: check(libc.setns(os.pidfd_open(1), NAMESPACES["mount"])),
    })  # fmt: skip


@attempt
def find_inherited_descriptors(bait: Bait) -> object:
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    kinds = [os.readlink(link) for link in links if os.path.lexists(link)]
    return [kind for kind in kinds if not kind.startswith("pipe:")]


@attempt
def gain_rights_through_a_set_user_id_program(bait: Bait) -> object:
    with open("/proc/self/uid_map") as file:
        if int(file.read().split()[2]) == 1:
            return []  # There is no other user from which to begin.
    os.makedirs("/tmp/suid", exist_ok=True)
    shutil.copy("/usr/bin/id", "/tmp/suid/id")
    os.chmod("/tmp/suid/id", 0o6755)
    told = subprocess.check_output(["/tmp/suid/id", "-u"], user=33, group=33, extra_groups=[])
    return told == b"0\n"


@attempt
def gain_capabilities(bait: Bait) -> object:
    with open("/proc/self/status") as file:
        fields = dict(line.split(":\t") for line in file if ":\t" in line)
    forbidden = {2, 12, 13, *range(14, 18), *range(19, 28), *range(32, 41)} | {11, 29, 30}
    bounds = [int(fields[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb")]
    gained = [bit for bit in forbidden if any(bound >> bit & 1 for bound in bounds)]
    return gained or fields["NoNewPrivs"].strip() != "1"


@attempt
def type_into_a_terminal_of_the_host(bait: Bait) -> object:
    terminals = [number for number in range(3) if os.isatty(number)]
    for path in ("/dev/tty", "/dev/console", "/dev/tty0", "/dev/tty1", "/dev/pts/0", "/dev/vcs"):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError:
            continue
        fcntl.ioctl(descriptor, termios.TIOCSTI, b"x")
        terminals.append(descriptor)
    return terminals


@attempt
def let_the_host_dump_a_core(bait: Bait) -> object:
    """A core that is piped to a program of the host's runs that as the host's root user.

    The kernel pipes one whatever the limit is, but for a limit of 1.
    """
    for limits in ((0, 0), (0, 1), (resource.RLIM_INFINITY, resource.RLIM_INFINITY)):
        try:
            resource.setrlimit(resource.RLIMIT_CORE, limits)
        except (OSError, ValueError):
            continue
    libc.setrlimit(resource.RLIMIT_CORE, bytes(16))
    return resource.getrlimit(resource.RLIMIT_CORE) != (1, 1)


@attempt
def call_the_kernel_as_a_32_bit_program(bait: Bait) -> object:
    if os.uname().machine != "x86_64":
        return []  # There is no such way on other architectures.
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20 (getpid); int 0x80; ret
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, str(ctypes.CFUNCTYPE(ctypes.c_int)(address)()).encode())
        os._exit(0)
    os.close(writing)
    told = os.read(reading, 100)
    return told == str(child).encode() and told


@attempt
def replace_the_program_of_pid_1(bait: Bait) -> object:
    path = "/proc/1/exe"
    return worked({
        "write": lambda: os.close(os.open(path, os.O_WRONLY)),
        "truncate": lambda: os.truncate(path, 0),
        "mode": lambda: os.chmod(path, 0o777),
    })  # fmt: skip
