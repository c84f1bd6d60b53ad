"""What a machine and a backend promise. `testing/checks` holds every implementation to it.

Paths are absolute paths inside the machine, as `str`. Bytes that are not UTF-8 are carried with
the surrogateescape error handler, as by `os.fsdecode`. Streams are anyio byte streams: receiving
raises `anyio.EndOfStream` at the end and `anyio.ClosedResourceError` after `aclose`.

A call on a machine that no longer exists raises `MachineGone`, hitting a limit `MachineFull`, a
path that cannot be used `PathRefused`, and an unknown id `UnknownHandle`. No error of a backend's
own library leaves its room.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Self

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Mapping, Sequence

    from anyio.abc import ByteReceiveStream, ByteSendStream

    from vers_rlm_mcp.settings import Settings

Isolation = Literal["vm", "namespace", "none"]
Fidelity = Literal["memory", "disk"]

INTENT = "intent"
"""The label that ties a machine to its entry in the ledger, recorded before it was made."""

SECRET = "secret"  # noqa: S105 - its name
"""The label that proves it: whoever has not seen it cannot put it on another machine."""


CLOCK_SECONDS = 4.0
"""By how much the times that a backend tells may differ from ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What machines of a backend are and can do, for decisions and for texts."""

    isolation: Isolation
    fidelity: Fidelity
    """What a commit or branch carries: the disk, or the disk with memory and processes."""
    root: bool
    """Whether programs may write to system directories, and so install packages."""
    network: bool
    limits: Mapping[str, str] = field(default_factory=dict[str, str])
    """How each limit (memory, processes, cpu, disk) is enforced: ``{"memory": "cgroup v2"}``."""
    notes: tuple[str, ...] = ()
    """Sentences for users and models, for example on what is read-only."""


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """The size of a machine. None stands for the backend's default."""

    vcpu_count: int | None = None
    mem_size_mib: int | None = None
    fs_size_mib: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineInfo:
    """What the backend knows of a machine without asking the machine itself."""

    id: str
    backend: str
    created_at: float
    """Seconds since the epoch by this host's clock; 0 if the backend does not tell."""
    parent: str | None
    """The commit that it was restored from or the machine that it was branched from."""
    labels: Mapping[str, str]
    spec: MachineSpec
    running: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """An immutable snapshot of a machine."""

    id: str
    machine_id: str
    created_at: float
    fidelity: Fidelity
    notes: tuple[str, ...] = ()
    """Sentences on how it was taken, if that matters to the user."""
    intent: str | None = None
    """Ties it to its entry in the ledger, like a machine's label `INTENT`."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a backend needs, and whether it is there."""

    name: str
    ok: bool
    text: str
    """What was found and, if `ok` is false, what to do."""


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended: with a code or by a signal. Exactly one of the two is set."""

    code: int | None
    signal: int | None = None

    @property
    def ok(self) -> bool:
        """Whether the process ended with code 0."""
        return self.code == 0


class Process(ABC):
    """A process in a machine. Leaving the ``async with`` kills it and closes its streams."""

    stdin: ByteSendStream
    """Closing it sends the process an end of file."""
    stdout: ByteReceiveStream
    stderr: ByteReceiveStream

    @abstractmethod
    async def wait(self) -> ExitStatus:
        """Wait for the process to end. Streams may still hold output. May be called repeatedly."""

    @abstractmethod
    async def kill(self) -> None:
        """Kill the process, and what it has started in the foreground, in other sessions too.

        What was put into the background to stay is spared: what a shell's ``&`` started in another
        session (``setsid``), or deaf to hang-ups (``nohup``).
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Kill the process if it runs, and close the streams. Never raises `MachineGone`."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class Machine(ABC):
    """A file system and processes that can be snapshotted and branched.

    Safe for concurrent use by many tasks.
    """

    id: str
    backend: str
    capabilities: Capabilities

    @abstractmethod
    async def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> Process:
        """Start a program in its own session. It is looked up in the machine's PATH.

        `env` is added to the machine's own environment; nothing of the host's is inherited. `cwd`
        is ``/workspace`` by default. Raises `PathRefused` if the program or `cwd` does not exist or
        cannot be used.
        """

    @abstractmethod
    async def read(
        self, path: str, *, offset: int = 0, length: int | None = None
    ) -> ByteReceiveStream:
        """Open a regular file for reading at most `length` bytes from byte `offset`.

        A negative `offset` counts from the end. Symlinks are followed inside the machine. Raises
        `PathRefused` if the path is not an existing, readable, regular file; a FIFO or a device
        never blocks. The caller closes the stream.
        """

    @abstractmethod
    async def write(
        self, path: str, data: bytes | AsyncIterable[bytes], *, mode: int = 0o644
    ) -> int:
        """Write a regular file and return its size in bytes.

        Missing parent directories are made. An existing file keeps its mode and owner, and has its
        old content until it has the new one, also if writing fails, is cancelled or cut off. Only
        where a directory admits no other file, or a file has several names, is it written in place.
        Raises `PathRefused` if the path is something else than a regular file, and `MachineFull` if
        no space is left.
        """

    @abstractmethod
    async def snapshot(self, *, intent: str | None = None) -> Commit:
        """Freeze the machine's state in a commit, which bears the `intent` from the beginning.

        The machine and its processes keep running.
        """

    @abstractmethod
    async def branch(
        self, count: int = 1, *, labels: Mapping[str, str] | None = None
    ) -> Sequence[Machine]:
        """Make `count` running copies of this machine, all from the same instant.

        After an error no copy is left. The machine itself keeps running.
        """

    @abstractmethod
    async def info(self) -> MachineInfo:
        """Describe this machine."""

    @abstractmethod
    async def delete(self) -> None:
        """Delete the machine and everything it left behind. Deleting it again is no error.

        Commits made from it and machines branched from it live on.
        """

    async def aclose(self) -> None:  # noqa: B027 - it may hold nothing
        """Release what this handle holds, such as a connection. The machine keeps running."""


class Backend(ABC):
    """Makes and finds machines. Leaving the ``async with`` closes connections, not machines."""

    name: str
    capabilities: Capabilities

    @abstractmethod
    async def create(
        self, spec: MachineSpec | None = None, *, labels: Mapping[str, str] | None = None
    ) -> Machine:
        """Make a machine that is ready to run programs. After an error nothing is left behind."""

    @abstractmethod
    async def attach(self, machine_id: str) -> Machine:
        """Return a handle on a machine, started if it is not running. Raises `UnknownHandle`."""

    @abstractmethod
    async def restore(
        self,
        commit_id: str,
        spec: MachineSpec | None = None,
        *,
        labels: Mapping[str, str] | None = None,
    ) -> Machine:
        """Make a machine from a commit. Raises `UnknownHandle`."""

    @abstractmethod
    async def list(self) -> Sequence[MachineInfo]:
        """List every machine of this backend, oldest first."""

    @abstractmethod
    async def commits(self) -> Sequence[Commit]:
        """List every commit of this backend, oldest first."""

    @abstractmethod
    async def delete(self, machine_id: str) -> None:
        """Delete a machine without attaching to it. An unknown id is no error."""

    async def unlabelled(self, parent: str, asked_at: float) -> Sequence[str]:
        """List copies made at about a given time that never got their labels.

        Override this if a copy does not bear its labels from the beginning.

        Args:
            parent: The machine or commit that was copied.
            asked_at: When copies were asked for, in seconds since the epoch.
        """
        del parent, asked_at
        return ()

    @abstractmethod
    async def delete_commit(self, commit_id: str) -> None:
        """Delete a commit. Machines made from it live on. An unknown id is no error."""

    async def sweep(self) -> Sequence[str]:
        """Remove what was made for machines to start from and is not needed; return its names."""
        return ()

    async def aclose(self) -> None:  # noqa: B027 - it may hold nothing
        """Close the connections that this object opened."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


@dataclass(frozen=True, slots=True)
class Usable:
    """Whether a backend can be used here."""

    yes: bool
    reason: str
    """What was found, as half a sentence."""


class BackendFactory(ABC):
    """Opens a backend as the settings say. Nothing heavy is imported before `open` or `probe`."""

    costs_money = False
    """Whether machines cost money. If so, `doctor` makes none."""

    @abstractmethod
    def usable(self, settings: Settings) -> Usable:
        """Whether ``auto`` may choose this backend. May try a machine, and may block."""

    def forget(self, settings: Settings) -> None:
        """Forget what `usable` remembers, so that it looks again: for `doctor`."""
        del settings

    @abstractmethod
    def open(self, settings: Settings) -> Backend:
        """Open the backend. Raises `BackendUnavailable` or `SettingsError`."""

    @abstractmethod
    async def probe(self, settings: Settings) -> Sequence[Finding]:
        """Try each thing that the backend needs, up to the first failure.

        A machine is made and deleted, unless that costs money.
        """
