"""PID 1 of a machine: puts its file system together, then serves the host's requests.

It works in the hidden directory where layers and base are mounted, which is covered so that no
process of the machine has a path to it. It alone holds capabilities over the machine's namespaces;
its children drop all but a few before they run anything. Once the machine's own directories are
mounted it imports nothing: what lies under /usr then belongs to the machine.

A request is a frame (see `wire`) with an operation, its arguments, and descriptors; the first
descriptor is where the reply goes, and closing it ends the reply.
"""

from __future__ import annotations

import _socket
import os
import resource
import select
import sys

from . import actions, calls, holders, merge, overlays, tasks, watch, wire

HIDDEN = "/.vers"
"""The hidden directory, in the root that bwrap made and, later, below the machine's root."""

EAGAIN = 11
EBUSY = 16
EFBIG = 27
ENOSPC = 28
EPROTO = 71
MEMORY = "/run"
"""A tmpfs: the kernel of the REPL has its program there, with which room can be made on a disk."""

REPORT = 3
"""The descriptor on which a child tells how its action went."""

FAILED = 127
"""The exit code of a child whose action was not completed."""

SMALLEST_PID_MAX = 301
"""The kernel takes no less."""

INT = 4
"""Bytes of a descriptor's number in a message."""

MAX_DESCRIPTORS = 64
"""Of one request: mounts when booting, else five."""

ENOUGH = 8
"""Processes that any command can do with."""

MASKED_FILES = ("kcore", "keys", "latency_stats", "timer_list", "sched_debug", "sysrq-trigger")
MASKED_DIRECTORIES = ("acpi", "asound", "scsi")
READ_ONLY = ("bus", "fs", "irq", "sys")
PROC_FLAGS = calls.MS_NOEXEC | calls.MS_RDONLY

# CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE SYS_CHROOT SETFCAP:
# what installing packages and running services takes, as in other containers.
KEPT_CAPABILITIES = sum(1 << number for number in (0, 1, 3, 4, 5, 6, 7, 8, 10, 18, 31))

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    Operation = Callable[[list[bytes], list[int]], list[bytes]]
    """Takes the arguments and descriptors of a request and returns the content of the reply."""

READABLE = select.POLLIN | select.POLLHUP


def _pairs(packed: bytes) -> list[tuple[str, str]]:
    fields = [os.fsdecode(field) for field in wire.unpack(packed)]
    return list(zip(fields[::2], fields[1::2]))


class Init:
    """The state of PID 1."""

    def __init__(self, control: _socket.socket) -> None:
        self._control = control
        self._children: dict[int, int] = {}
        """The status descriptor of each child that the host asked for."""
        self._overlays: list[overlays.Overlay] = []
        self._frozen: list[overlays.Overlay] = []
        self._stopped: list[int] = []
        self._limits: list[tuple[int, int]] = []
        self._filter = b""
        self._watch = watch.Watch(0, 0, self._overlays)

    def serve(self) -> None:
        """Serve requests until the host closes the connection."""
        ended = calls.child_signals()
        poll = select.poll()
        poll.register(self._control, READABLE)
        poll.register(ended, READABLE)
        while True:
            for descriptor, _ in poll.poll(self._watch.interval):
                if descriptor == ended:
                    os.read(ended, 4096)
                    self._reap()
                elif not self._answer():
                    return
            self._watch.look()

    # Requests

    def _answer(self) -> bool:
        """Take one request and answer it; False at the end of the connection."""
        request, descriptors = self._receive()
        if not request:
            return False
        reply = descriptors[0]
        try:
            result = self._operations()[request[0]](request[1:], descriptors[1:])
            _tell(reply, [b"ok", *result])
        except OSError as error:
            _tell_error(reply, error)
        finally:
            for descriptor in descriptors:
                if descriptor not in self._children.values():
                    os.close(descriptor)
        return True

    def _operations(self) -> dict[bytes, Operation]:
        return {
            b"boot": self._boot,
            b"run": self._run,
            b"read": self._read,
            b"write": self._write,
            b"kill": self._kill,
            b"changes": self._changes,
            b"freeze": self._freeze,
            b"switch": self._switch,
            b"copy": self._copy,
            b"thaw": self._thaw,
        }

    def _receive(self) -> tuple[list[bytes], list[int]]:
        space = _socket.CMSG_SPACE(MAX_DESCRIPTORS * INT)
        data, ancillary, _, _ = self._control.recvmsg(4, space, _socket.MSG_CMSG_CLOEXEC)
        rights = b"".join(content for _, _, content in ancillary)
        descriptors = [
            int.from_bytes(rights[start : start + INT], sys.byteorder)
            for start in range(0, len(rights), INT)
        ]
        size = int.from_bytes(data + self._take(4 - len(data)) if data else b"", "big")
        return wire.unpack(self._take(size)), descriptors

    def _take(self, size: int) -> bytes:
        parts: list[bytes] = []
        while size:
            part = self._control.recv(size)
            if not part:
                return b""
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    # Booting

    def _boot(self, arguments: list[bytes], descriptors: list[int]) -> list[bytes]:
        """Put the file system together. The working directory is `HIDDEN` from here on."""
        name, attached, writable, links, binds, limits, self._filter, shared, watched = arguments
        memory, disk, processes = map(int, wire.unpack(watched))
        self._watch = watch.Watch(memory, disk, self._overlays)
        calls.set_undumpable()
        calls.forget_keys()
        calls.sethostname(name)
        os.umask(0)
        os.chdir(HIDDEN)
        for target, descriptor in zip(wire.unpack(attached), descriptors):
            calls.move_mount(descriptor, target)
        calls.mount(b"tmpfs", b"root", b"tmpfs", overlays.FLAGS, b"mode=755,size=1m")
        self._place(wire.unpack(writable))
        for target, destination in _pairs(links):
            os.symlink(destination, f"root{target}")
        for source, target in _pairs(binds):
            os.makedirs(f"root{target}", exist_ok=True)
            calls.mount(source.encode(), f"root{target}".encode(), b"", calls.MS_BIND)
            calls.remount(f"root{target}".encode(), calls.MS_RDONLY)
        self._limits = [(int(kind), int(value)) for kind, value in _pairs(limits)]
        _mount_kernel_directories(shared, processes)
        _enter_root()
        for overlay in self._overlays:
            overlay.look()
        os.umask(0o022)
        return []

    def _place(self, writable: list[bytes]) -> None:
        for packed in writable:
            slot, base, layers, views = wire.unpack(packed)
            names = [layer.decode() for layer in wire.unpack(layers)]
            overlay = overlays.Overlay(slot.decode(), os.fsdecode(base), names, _pairs(views))
            overlay.start("root")
            self._overlays.append(overlay)

    # Processes

    def _run(self, arguments: list[bytes], descriptors: list[int]) -> list[bytes]:
        directory, count, *rest = arguments
        full = self._watch.fullness
        argv, environment = rest[: int(count)], rest[int(count) :]

        def action() -> None:
            os.chdir(directory)
            calls.default_signals()
            _warn(_full_of_processes())
            _warn(full and f"{full}. Delete files, and wait a second.")
            actions.execute(argv, dict(zip(environment[::2], environment[1::2])))

        return self._start(action, descriptors)

    def _read(self, arguments: list[bytes], descriptors: list[int]) -> list[bytes]:
        path, offset, length = arguments

        def action() -> None:
            source = actions.open_to_read(path, int(offset))
            _tell(REPORT, [b"ok"])
            actions.send(source, int(length))

        return self._start(action, descriptors)

    def _write(self, arguments: list[bytes], descriptors: list[int]) -> list[bytes]:
        path, mode = arguments
        full = self._watch.full

        def action() -> None:
            target = actions.open_to_write(path, int(mode))
            if full:
                self._spare_memory(target)
            size = actions.receive(target)
            os.close(target)
            _tell(REPORT, [b"ok", b"%d" % size])

        return self._start(action, descriptors)

    def _spare_memory(self, target: int) -> None:
        """When the disk is full, let a file be written that does not lie on it."""
        if not overlays.same_mount(target, MEMORY):
            raise OSError(ENOSPC, self._watch.fullness)
        for kind, value in self._limits:
            if kind == resource.RLIMIT_FSIZE:
                resource.setrlimit(kind, (value, value))

    def _start(self, action: Callable[[], None], descriptors: list[int]) -> list[bytes]:
        """Fork a process of the machine that performs `action`.

        The descriptors are its status, its report, and standard input, output and error.
        """
        status, report, *standard = descriptors
        self._watch.touched = True
        self._reap()  # What has ended counts as a process until then.
        try:
            child = os.fork()
        except BlockingIOError:
            text = f"all {tasks.threads()} processes that it may have are there already"
            raise OSError(EAGAIN, text) from None
        if child:
            self._children[child] = status
            return [b"%d" % child]
        code = FAILED
        try:
            self._become_ordinary(report, standard)
            action()
            code = 0
        except OSError as error:
            _tell_error(REPORT, error)
        finally:
            os._exit(code)

    def _become_ordinary(self, report: int, standard: list[int]) -> None:
        """Turn a fork of PID 1 into a process of the machine, without rights or descriptors."""
        os.setsid()
        for number, descriptor in enumerate(standard):
            os.dup2(descriptor, number)
        os.dup2(report, REPORT, inheritable=False)
        calls.close_from(REPORT + 1)
        os.chdir("/")
        for kind, value in self._limits:
            full = kind == resource.RLIMIT_FSIZE and (
                self._watch.full or resource.getrlimit(kind)[0] == 0  # PID 1 may be quicker.
            )
            resource.setrlimit(kind, (0 if full else value, value))
        calls.keep_capabilities(KEPT_CAPABILITIES)
        calls.filter_calls(self._filter)

    def _reap(self) -> None:
        while True:
            try:
                child, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if child == 0:
                return
            descriptor = self._children.pop(child, None)
            if descriptor is not None:
                how = b"signal" if os.WIFSIGNALED(status) else b"exit"
                number = status & 0x7F if how == b"signal" else status >> 8
                _tell(descriptor, [how, b"%d" % number])
                os.close(descriptor)

    def _kill(self, arguments: list[bytes], descriptors: list[int]) -> list[bytes]:
        leader = int(arguments[0])
        reused = leader not in self._children and os.path.exists(f"/proc/{leader}")
        if not reused:  # While a session has members, its number is not given to another process.
            tasks.kill_session(leader)
        return []

    # Snapshots

    def _changes(self, arguments: list[bytes], descriptors: list[int]) -> list[bytes]:
        """The slots that have changed, while everything goes on."""
        return [overlay.slot.encode() for overlay in self._overlays if overlay.changed]

    def _freeze(self, arguments: list[bytes], descriptors: list[int]) -> list[bytes]:
        """Stop everything, and see what has changed and whether layers can be switched.

        With the argument `merged`, all that lies over layers is frozen, changed or not. Replies
        with the obstacle, empty when there is none, and the slots that are frozen. A full disk is
        refused: no deleting could make room again on what is frozen.
        """
        if self._watch.full:
            raise OSError(EFBIG, self._watch.fullness)
        try:
            self._stopped = tasks.stop_all()
        except tasks.Unstoppable:
            raise OSError(EBUSY, "the machine's processes could not be stopped") from None
        merged = arguments == [b"merged"]
        self._frozen = [
            overlay for overlay in self._overlays if overlay.changed or (merged and overlay.layers)
        ]
        obstacle = holders.obstacle(self._frozen)
        return [obstacle.encode(), *(overlay.slot.encode() for overlay in self._frozen)]

    def _switch(self, arguments: list[bytes], descriptors: list[int]) -> list[bytes]:
        """Go on over the frozen layer, which the host has moved to its place. All or nothing.

        A second argument names the layer that takes the place of all older ones.
        """
        layer, *merged = [argument.decode() for argument in arguments]
        prepared: list[overlays.Overlay] = []
        try:
            for overlay in self._frozen:
                prepared.append(overlay)
                overlay.prepare(layer, merged)
        except OSError:
            for overlay in prepared:
                overlay.abandon()
            raise
        for overlay in self._frozen:
            overlay.switch()
        return []

    def _copy(self, arguments: list[bytes], descriptors: list[int]) -> list[bytes]:
        """Copy what was written since the last freeze to `machine/copy`, in a child of PID 1.

        With the argument `merged`, what was written before is copied instead, its layers merged
        into one, to `machine/merged`; those are frozen, so that the machine may go on meanwhile.
        """
        status, report = descriptors
        child = os.fork()
        if child:
            self._children[child] = status
            return [b"%d" % child]
        try:
            if arguments == [b"merged"]:
                work = [("merged", over, over.frozen) for over in self._overlays if over.layers]
            else:
                work = [("copy", over, [over.upper]) for over in self._frozen]
            for place, overlay, sources in work:
                target = f"machine/{place}/{overlay.slot}/u"
                os.makedirs(target)
                merge.copy(sources, target)
            _tell(report, [b"ok"])
        except OSError as error:
            _tell_error(report, error)
        finally:
            os._exit(FAILED)  # The report tells how it went.

    def _thaw(self, arguments: list[bytes], descriptors: list[int]) -> list[bytes]:
        """Let everything go on; writable again where layers were not switched."""
        try:
            for overlay in self._frozen:
                overlay.protect(0)
        finally:
            tasks.resume(self._stopped)
            self._frozen, self._stopped = [], []
        return []


def _tell(descriptor: int, fields: list[bytes]) -> None:
    """Write a reply; a host that no longer listens is no error."""
    try:  # noqa: SIM105 - contextlib takes milliseconds to import
        os.write(descriptor, wire.frame(fields))
    except OSError:
        pass


def _tell_error(descriptor: int, error: OSError) -> None:
    place = f" ({error.filename})" if isinstance(error.filename, str) else ""
    text = os.fsencode(f"{error.strerror or error}{place}")
    _tell(descriptor, [b"error", b"%d" % (error.errno or EPROTO), text])


def _full_of_processes() -> str:
    """What to know when this process will not be able to start others; else nothing."""
    running, most = tasks.threads(), resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if not 0 <= most < running + ENOUGH:
        return ""
    return (
        f"the machine has {running} of the {most} processes and threads that it may have: "
        "commands that start others fail. See them with `ps aux`; end some with `pkill -9 NAME`, "
        "or all of them, the REPL too, with `kill -9 -1`."
    )


def _warn(text: str) -> None:
    """Say something on a program's standard error before it starts."""
    if text:
        os.write(2, f"[{text}]\n".encode())


def _mount_kernel_directories(shared: bytes, processes: int) -> None:
    """/proc, /dev, /run and the like, below `root`; `shared` limits memory file systems."""
    if processes:
        _limit_processes(processes)
    for name in ("proc", "dev", "run", "sys"):
        os.mkdir(f"root/{name}", 0o755)
    with open("/proc/sys/user/max_user_namespaces", "w") as file:
        file.write("0")
    for name in ("proc", "dev"):
        calls.mount(f"/{name}".encode(), f"root/{name}".encode(), b"", calls.MS_MOVE)
    for path in (b"root/run", b"root/dev/shm"):
        calls.mount(b"tmpfs", path, b"tmpfs", overlays.FLAGS, shared)
    calls.remount(b"root/dev", calls.MS_RDONLY)
    os.chmod("root/dev/shm", 0o1777)  # noqa: S103 - as on every system
    os.chmod("root/run", 0o755)  # noqa: S103 - as on every system
    for name in MASKED_FILES:
        if os.path.exists(f"root/proc/{name}"):
            calls.mount(b"root/dev/null", f"root/proc/{name}".encode(), b"", calls.MS_BIND)
    for name in MASKED_DIRECTORIES:
        if os.path.isdir(f"root/proc/{name}"):
            path = f"root/proc/{name}".encode()
            calls.mount(b"tmpfs", path, b"tmpfs", PROC_FLAGS | overlays.FLAGS, b"size=0,mode=0")
    for name in READ_ONLY:
        path = f"root/proc/{name}".encode()
        calls.mount(path, path, b"", calls.MS_BIND)
        calls.remount(path, PROC_FLAGS)


def _limit_processes(count: int) -> None:
    """Bound process ids, which count from 1 in every PID namespace; older kernels cannot."""
    try:
        with open("/proc/sys/kernel/pid_max", "w") as file:
            file.write(str(max(count, SMALLEST_PID_MAX)))
    except OSError:
        pass


def _enter_root() -> None:
    """Make `root` the root; cover what it was, but keep working in its hidden directory."""
    os.mkdir(f"root{HIDDEN}", 0o700)
    hidden = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.chdir("root")
    calls.pivot_root(b".", HIDDEN[1:].encode())
    cover = HIDDEN.encode()
    calls.mount(b"tmpfs", cover, b"tmpfs", calls.MS_RDONLY | overlays.FLAGS, b"size=0,mode=0")
    calls.remount(b"/", calls.MS_RDONLY)
    os.chdir("/")
    os.fchdir(hidden)
    os.close(hidden)


def main() -> None:
    """Serve the connection whose descriptor is the first argument; keep also those that follow."""
    kept = [int(argument) for argument in sys.argv[1:]]
    for start, end in zip([2, *sorted(kept)], sorted(kept)):
        os.closerange(start + 1, end)
    calls.close_from(max(kept) + 1)
    Init(_socket.socket(fileno=kept[0])).serve()
