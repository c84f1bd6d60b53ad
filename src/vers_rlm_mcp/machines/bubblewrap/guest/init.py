"""PID 1 of a machine: puts its file system together, then serves the host as its daemon.

It works in the hidden directory where layers and base are mounted, which is covered so that no
process of the machine has a path to it. It alone holds capabilities over the machine's namespaces;
its children drop all but a few before they run anything. Once the machine's own directories are
mounted it imports nothing: what lies under /usr then belongs to the machine.

Requests may come with descriptors: the streams of a job, or mounts.
"""

# ruff: noqa: D102 - the methods change what the docstrings of the daemon's say

from __future__ import annotations

import _socket
import errno
import os
import resource
import select
import sys

from ...daemon.guest.daemon import Daemon, encoded
from ...daemon.guest.frames import CHUNK, STDERR
from . import flatten, holders, linux, overlays, processes, watch

HIDDEN = "/.vers"
"""The hidden directory, in the root that bwrap made and, later, below the machine's root."""

MEMORY = "/run"
"""A tmpfs with the program of the REPL's kernel, which must start even if the disk is full."""

SMALLEST_PID_MAX = 301
"""The smallest value that Linux accepts."""

INT = 4
"""Bytes of a descriptor's number in a message."""

MAX_DESCRIPTORS = 64
"""Descriptors that come with one request: mounts when booting, otherwise four."""

SIGXFSZ = 25
SHELL_SIGNAL = 128
"""What a shell adds to the number of the signal that has ended its last command."""

ENOUGH = 8
"""Free processes that suffice for any command."""

SHARED_FILE = 4096
"""Bytes of a memory file system for which it may have one file: also an empty one takes memory."""

MOST_QUEUES = 256
"""System V message queues, of 16 KiB each."""

MASKED_FILES = ("kcore", "keys", "latency_stats", "timer_list", "sched_debug", "sysrq-trigger")
MASKED_DIRECTORIES = ("acpi", "asound", "scsi")
# How the kernel treats PID 1 against other processes.
OF_PID_1 = [
    f"1/{place}{name}" for place in ("", "task/1/") for name in ("oom_score_adj", "autogroup")
]
READ_ONLY = ("bus", "fs", "irq", "sys", *OF_PID_1)
PROC_FLAGS = linux.MS_NOEXEC | linux.MS_RDONLY

# CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE SYS_CHROOT SETFCAP:
# what installing packages and running services takes, as in other containers.
KEPT_CAPABILITIES = sum(1 << number for number in (0, 1, 3, 4, 5, 6, 7, 8, 10, 18, 31))

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ...daemon.guest.daemon import Act, Job, Request


class Init(Daemon):
    """The daemon of a machine that is also its PID 1."""

    def __init__(self, control: _socket.socket) -> None:
        super().__init__(control.fileno(), os.dup(control.fileno()))
        self.operations.update(
            boot=self._boot,
            changes=self._changes,
            freeze=self._freeze,
            switch=self._switch,
            thaw=self._thaw,
        )
        self.tasks["copy"] = self._copy
        self._control = control
        self._overlays: list[overlays.Overlay] = []
        self._frozen: list[overlays.Overlay] = []
        self._stopped: list[int] = []
        self._is_frozen = False
        self._limits: list[tuple[int, int]] = []
        self._filter = b""
        self._watch = watch.Watch(0, 0, self._overlays)

    def interval(self) -> int:
        return watch.NEVER if self._is_frozen else self._watch.interval

    def look(self) -> None:
        if not self._is_frozen:
            self._watch.look()

    def take(self) -> bytes:
        space = _socket.CMSG_SPACE(MAX_DESCRIPTORS * INT)
        data, ancillary, flags, _ = self._control.recvmsg(CHUNK, space, _socket.MSG_CMSG_CLOEXEC)
        if flags & _socket.MSG_CTRUNC:
            sys.exit("a program has lowered the number of descriptors that this one may have")
        rights = b"".join(content for _, _, content in ancillary)
        self.descriptors += [
            int.from_bytes(rights[start : start + INT], sys.byteorder)
            for start in range(0, len(rights), INT)
        ]
        return data

    def begin(self, request: Request, given: list[int]) -> Job:
        job = super().begin(request, given)
        if request["do"] == "run":
            try:  # noqa: SIM105 - contextlib takes milliseconds to import
                job.errors = os.dup(given[STDERR])
            except OSError:  # There is no descriptor left; what it is for can go unsaid.
                pass
        return job

    def explain_end(self, job: Job, status: int) -> None:
        """Say why a program may have failed, if a limit has had anything to do with it."""
        if job.errors < 0 or not status:
            return
        text = self._watch.notice_since(job.mark)
        if not text and {os.WTERMSIG(status), os.WEXITSTATUS(status) - SHELL_SIGNAL} & {SIGXFSZ}:
            text = "no file may be larger than what the machine may write in all"
        writable = select.poll()
        writable.register(job.errors, select.POLLOUT)
        if text and writable.poll(0):
            _warn(text, job.errors)

    # Booting

    def _boot(self, request: Request, descriptors: list[int]) -> None:
        """Put the file system together. The working directory is `HIDDEN` from here on."""
        self._watch = watch.Watch(request["memory"], request["disk"], self._overlays)
        self._filter = bytes.fromhex(request["filter"])
        self._limits = request["limits"]
        self.environment.update(
            (encoded(name), encoded(value)) for name, value in request["environment"].items()
        )
        linux.set_undumpable()
        linux.forget_keys()
        linux.sethostname(request["hostname"].encode())
        os.umask(0)
        os.chdir(HIDDEN)
        for target, descriptor in zip(request["attached"], descriptors):
            linux.move_mount(descriptor, target.encode())
        linux.mount(b"tmpfs", b"root", b"tmpfs", overlays.FLAGS, b"mode=755,size=1m")
        for slot, base, layers, views in request["slots"]:
            overlay = overlays.Overlay(slot, base, layers, list(views.items()))
            overlay.start("root")
            self._overlays.append(overlay)
        for target, destination in request["links"].items():
            os.symlink(encoded(destination), encoded(f"root{target}"))
        for source, target in request["binds"].items():
            place = encoded(f"root{target}")
            os.makedirs(place, exist_ok=True)
            linux.mount(encoded(source), place, b"", linux.MS_BIND)
            linux.remount(place, linux.MS_RDONLY)
        _mount_kernel_directories(request["shared"].encode(), request["processes"])
        _enter_root()
        sys.path.clear()  # What would still be imported, after a fault, would be the machine's.
        for overlay in self._overlays:
            overlay.refresh_mounts()
        os.umask(0o022)

    # Processes

    def run(self, request: Request) -> Act:
        act, fullness = super().run(request), self._watch.disk.fullness

        def warn_and_act() -> None:
            _warn(_process_warning())
            _warn(fullness and f"{fullness}. Delete files, and wait a second.")
            act()

        return warn_and_act

    def fork(self) -> int:
        self._watch.disk.touched = True
        try:
            return os.fork()
        except BlockingIOError:
            text = f"all {processes.threads()} processes that it may have are there already"
            raise OSError(errno.EAGAIN, text) from None

    def close_from(self, first: int) -> None:
        linux.close_from(first)

    def prepare(self, task: str, mark: int) -> None:
        """Turn a fork of PID 1 into an ordinary process of the machine, without PID 1's rights."""
        if task == "copy":  # of PID 1's session, which the watch leaves alone
            return
        super().prepare(task, mark)
        os.chdir("/")
        for kind, value in self._limits:
            full = kind == resource.RLIMIT_FSIZE and (
                self._watch.disk.full or resource.getrlimit(kind)[0] == 0  # PID 1 may be quicker.
            )
            resource.setrlimit(kind, (0 if full else value, value))
        linux.keep_capabilities(KEPT_CAPABILITIES)
        linux.filter_calls(self._filter)

    def admit(self, file: int) -> None:
        """If the disk is full, refuse to write to it, but not to other file systems."""
        if not self._watch.disk.full:
            return
        if not overlays.same_mount(file, MEMORY):
            raise OSError(errno.ENOSPC, self._watch.disk.fullness)
        for kind, value in self._limits:
            if kind == resource.RLIMIT_FSIZE:
                resource.setrlimit(kind, (value, value))

    # Snapshots

    def _changes(self, request: Request, descriptors: list[int]) -> list[str]:
        """The slots that have changed, while everything keeps running."""
        return [overlay.slot for overlay in self._overlays if overlay.changed]

    def _freeze(self, request: Request, descriptors: list[int]) -> dict[str, object]:
        """Stop all processes, and find what has changed and whether layers can be switched.

        With `merged`, every slot that has layers is frozen, changed or not. Returns the obstacle
        (empty if there is none) and the frozen slots. A full disk is refused, because deleting
        files frees nothing in frozen layers.
        """
        if self._watch.disk.full:
            raise OSError(errno.EFBIG, self._watch.disk.fullness)
        self._watch.disk.release()
        self._is_frozen = True
        try:
            self._stopped = processes.stop_all()
            merged = request["merged"]
            self._frozen = [
                overlay
                for overlay in self._overlays
                if overlay.changed or (merged and overlay.layers)
            ]
            obstacle = holders.obstacle(self._frozen)
        except processes.Unstoppable:
            self._is_frozen = False
            raise OSError(errno.EBUSY, "the machine's processes could not be stopped") from None
        except OSError:
            self._thaw(request, descriptors)
            raise
        return {"obstacle": obstacle, "slots": [overlay.slot for overlay in self._frozen]}

    def _switch(self, request: Request, descriptors: list[int]) -> None:
        """Switch all slots or none to the frozen layer, which the host has moved into place.

        `merged` names the layer that replaces all older ones, if there is one.
        """
        prepared: list[overlays.Overlay] = []
        try:
            for overlay in self._frozen:
                prepared.append(overlay)
                overlay.prepare(request["layer"], request["merged"])
        except OSError:
            for overlay in prepared:
                overlay.abandon()
            raise
        for overlay in self._frozen:
            overlay.switch()

    def _copy(self, request: Request) -> Act:
        """Copy what was written since the last freeze to `machine/copy`.

        With `merged`, the older layers are copied instead, merged into one, to `machine/merged`.
        They are frozen, so the machine keeps running.
        """
        if request["merged"]:
            work = [("merged", over, over.frozen) for over in self._overlays if over.layers]
        else:
            work = [("copy", over, [over.upper]) for over in self._frozen]

        def act() -> None:
            for place, overlay, sources in work:
                target = f"machine/{place}/{overlay.slot}/u"
                os.makedirs(target)
                flatten.copy(sources, target)

        return act

    def _thaw(self, request: Request, descriptors: list[int]) -> None:
        """Resume all processes. Slots that were not switched become writable again."""
        try:
            for overlay in self._frozen:
                overlay.protect(0)
        finally:
            processes.resume(self._stopped)
            self._frozen, self._stopped = [], []
            self._is_frozen = False
            self._watch.disk.expect_loss()


def _process_warning() -> str:
    """A warning if this process may be unable to start others, else an empty text."""
    running, most = processes.threads(), resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if not 0 <= most < running + ENOUGH:
        return ""
    return (
        f"the machine has {running} of the {most} processes and threads that it may have: "
        "commands that start others fail. See them with `ps aux`; end some with `pkill -9 NAME`, "
        "or all of them, the REPL too, with `kill -9 -1`."
    )


def _warn(text: str, errors: int = STDERR) -> None:
    """Write to a program's standard error, before it starts or after it has ended."""
    if text:
        try:  # noqa: SIM105 - contextlib takes milliseconds to import
            os.write(errors, f"[{text}]\n".encode())
        except OSError:  # The host has closed it.
            pass


def _mount_kernel_directories(shared: bytes, processes: int) -> None:
    """/proc, /dev, /run and the like, below `root`; `shared` limits memory file systems."""
    if processes:
        _limit_processes(processes)
    for name in ("proc", "dev", "run", "sys"):
        os.mkdir(f"root/{name}", 0o755)
    with open("/proc/sys/user/max_user_namespaces", "w") as file:
        file.write("0")
    _limit_messages(shared)
    for name in ("proc", "dev"):
        linux.mount(f"/{name}".encode(), f"root/{name}".encode(), b"", linux.MS_MOVE)
    inodes = int(shared.rpartition(b"size=")[2]) // SHARED_FILE
    for path in (b"root/run", b"root/dev/shm"):
        linux.mount(b"tmpfs", path, b"tmpfs", overlays.FLAGS, b"%s,nr_inodes=%d" % (shared, inodes))
    linux.remount(b"root/dev", linux.MS_RDONLY)
    os.chmod("root/dev/shm", 0o1777)  # noqa: S103 - as on every system
    os.chmod("root/run", 0o755)  # noqa: S103 - as on every system
    _protect_proc()


def _protect_proc() -> None:
    """Hide or protect what in /proc concerns the host, or PID 1."""
    for name in MASKED_FILES:
        if os.path.exists(f"root/proc/{name}"):
            linux.mount(b"root/dev/null", f"root/proc/{name}".encode(), b"", linux.MS_BIND)
    for name in MASKED_DIRECTORIES:
        if os.path.isdir(f"root/proc/{name}"):
            path = f"root/proc/{name}".encode()
            linux.mount(b"tmpfs", path, b"tmpfs", PROC_FLAGS | overlays.FLAGS, b"size=0,mode=0")
    for name in READ_ONLY:
        path = f"root/proc/{name}".encode()
        if os.path.exists(path):
            linux.mount(path, path, b"", linux.MS_BIND)
            linux.remount(path, PROC_FLAGS)


def _limit_messages(shared: bytes) -> None:
    """Limit System V memory as memory file systems are, and queues, if the kernel supports that."""
    size = int(shared.rpartition(b"size=")[2])
    limits = {"shmall": size // os.sysconf("SC_PAGE_SIZE"), "shmmax": size, "msgmni": MOST_QUEUES}
    for name, value in limits.items():
        try:
            with open(f"/proc/sys/kernel/{name}", "w") as file:
                file.write(str(value))
        except OSError:  # noqa: PERF203 - each may be refused
            pass


def _limit_processes(count: int) -> None:
    """Limit process ids, which start at 1 in every PID namespace, if the kernel supports that."""
    try:
        with open("/proc/sys/kernel/pid_max", "w") as file:
            file.write(str(max(count, SMALLEST_PID_MAX)))
    except OSError:
        pass


def _enter_root() -> None:
    """Make `root` the root. Cover the old one, but keep working in its hidden directory."""
    os.mkdir(f"root{HIDDEN}", 0o700)
    hidden = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.chdir("root")
    linux.pivot_root(b".", HIDDEN[1:].encode())
    cover = HIDDEN.encode()
    linux.mount(b"tmpfs", cover, b"tmpfs", linux.MS_RDONLY | overlays.FLAGS, b"size=0,mode=0")
    linux.remount(b"/", linux.MS_RDONLY)
    os.chdir("/")
    os.fchdir(hidden)
    os.close(hidden)


def main() -> None:
    """Serve the connection that sent this program; keep only descriptors named as arguments."""
    control, _, *others = map(int, sys.argv[1:])
    kept = sorted([control, *others])
    for start, end in zip([2, *kept], kept):
        os.closerange(start + 1, end)
    linux.close_from(kept[-1] + 1)
    Init(_socket.socket(fileno=control)).serve()
