"""What a machine and a backend promise. `testing/checks` holds every implementation to it.

Paths are absolute paths inside the machine, as `str`; bytes that are not UTF-8 are carried with
the surrogateescape error handler, as `os.fsdecode` does. Streams are anyio byte streams: a receive
raises `anyio.EndOfStream` at the end and `anyio.ClosedResourceError` after `aclose`.

Errors: a call on a machine that no longer exists raises `MachineGone`, a limit that was hit
`MachineFull`, a path that cannot be used `PathRefused`, an id nobody knows `UnknownHandle`.
No error of a backend's own library leaves its module.
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
"""The label that ties a machine to the ledger entry written before it was asked for."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What machines of a backend are and can do: data, for texts and decisions."""

    isolation: Isolation
    fidelity: Fidelity
    """What a commit or branch carries: the disk, or the disk with memory and processes."""
    root: bool
    """Whether programs in the machine may write to system directories (install packages)."""
    network: bool
    limits: Mapping[str, str] = field(default_factory=dict[str, str])
    """How each limit (memory, processes, cpu, disk) is enforced: ``{"memory": "cgroup v2"}``."""
    notes: tuple[str, ...] = ()
    """Whole sentences on what a user or a model should know, e.g. what is read-only."""


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """The machine that is wanted. None leaves a value to the backend's settings."""

    vcpu_count: int | None = None
    mem_size_mib: int | None = None
    fs_size_mib: int | None = None


@dataclass(frozen=True, slots=True)
class MachineInfo:
    """What is known of a machine without asking the machine itself."""

    id: str
    backend: str
    created_at: float
    """Seconds since the epoch."""
    parent: str | None
    """The commit it was restored from or the machine it was branched from."""
    labels: Mapping[str, str]
    spec: MachineSpec
    running: bool


@dataclass(frozen=True, slots=True)
class Commit:
    """An immutable snapshot of a machine."""

    id: str
    machine_id: str
    created_at: float
    fidelity: Fidelity
    notes: tuple[str, ...] = ()
    """Whole sentences on how it was taken, where that matters to the user."""
    intent: str | None = None
    """What ties it to the ledger entry written before it was asked for, as a machine's label."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a backend needs, as it was found when somebody looked."""

    name: str
    ok: bool
    text: str
    """What was seen, and where it is not well what to do."""


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended: with a code, or by a signal. Exactly one of the two is set."""

    code: int | None
    signal: int | None = None

    @property
    def ok(self) -> bool:
        """Whether the process ended with code 0."""
        return self.code == 0


class Process(ABC):
    """A process in a machine. Leaving the ``async with`` kills what still runs and closes all."""

    stdin: ByteSendStream
    """Closing it gives the process an end of file."""
    stdout: ByteReceiveStream
    stderr: ByteReceiveStream

    @abstractmethod
    async def wait(self) -> ExitStatus:
        """Wait for the process to end. Streams may still hold output. May be called again."""

    @abstractmethod
    async def kill(self) -> None:
        """Kill the process and every process it started that is still in its session."""

    @abstractmethod
    async def aclose(self) -> None:
        """Kill if needed and close the streams. Never raises because the machine is gone."""

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
        """Start a program, in a session of its own, found through the machine's PATH.

        `env` is added to the machine's own environment; nothing of the host's is inherited.
        `cwd` defaults to the machine's working directory, `/workspace`. Raises `PathRefused` when
        the program or `cwd` does not exist or cannot be executed.
        """

    @abstractmethod
    async def read(
        self, path: str, *, offset: int = 0, length: int | None = None
    ) -> ByteReceiveStream:
        """Open a regular file for reading, from byte `offset`, at most `length` bytes.

        A negative `offset` counts from the end. Symlinks are followed inside the machine. Raises
        `PathRefused` when the path is not an existing, readable, regular file: never blocks on a
        FIFO or a device. The caller closes the stream.
        """

    @abstractmethod
    async def write(
        self, path: str, data: bytes | AsyncIterable[bytes], *, mode: int = 0o644
    ) -> int:
        """Write a regular file, byte for byte, and return its size.

        Missing parent directories are made. An existing file is replaced (its mode is kept); one
        that is not a regular file is refused with `PathRefused`. After an error the old content
        may be gone. No space left raises `MachineFull`.
        """

    @abstractmethod
    async def snapshot(self, *, intent: str | None = None) -> Commit:
        """Freeze the machine's state in a new commit, which bears the `intent` from the beginning.

        The machine itself goes on, processes too.
        """

    @abstractmethod
    async def branch(
        self, count: int = 1, *, labels: Mapping[str, str] | None = None
    ) -> Sequence[Machine]:
        """Make `count` running copies of this machine, all from the same instant.

        All or none: after an error no copy is left. The machine itself goes on.
        """

    @abstractmethod
    async def info(self) -> MachineInfo:
        """What the backend knows of this machine."""

    @abstractmethod
    async def delete(self) -> None:
        """Remove the machine with everything it left behind. Deleting a gone one is no error.

        Commits made from it, and machines branched from it, live on.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Let go of the connection; the machine goes on as far as its backend can do that."""


class Backend(ABC):
    """Makes and finds machines. An ``async with`` bounds its connections, not its machines."""

    name: str
    capabilities: Capabilities

    @abstractmethod
    async def create(
        self, spec: MachineSpec | None = None, *, labels: Mapping[str, str] | None = None
    ) -> Machine:
        """Make a fresh machine, ready to spawn. After an error nothing is left behind."""

    @abstractmethod
    async def attach(self, machine_id: str) -> Machine:
        """A handle on an existing machine; it is started if it is not running.

        Raises `UnknownHandle`.
        """

    @abstractmethod
    async def restore(
        self,
        commit_id: str,
        spec: MachineSpec | None = None,
        *,
        labels: Mapping[str, str] | None = None,
    ) -> Machine:
        """Make a new machine from a commit. Raises `UnknownHandle`."""

    @abstractmethod
    async def list(self) -> Sequence[MachineInfo]:
        """Every machine of this backend, oldest first."""

    @abstractmethod
    async def commits(self) -> Sequence[Commit]:
        """Every commit of this backend, oldest first."""

    @abstractmethod
    async def delete(self, machine_id: str) -> None:
        """Delete a machine without attaching to it. One that is gone already is no error."""

    async def unlabelled(self, parent: str, asked_at: float) -> Sequence[str]:
        """Copies of a machine or commit that were made about a time and never got labels.

        There are none where a copy bears its labels from the beginning.

        Args:
            parent: The id of the machine or commit.
            asked_at: When copies were asked for, in seconds since the epoch.
        """
        del parent, asked_at
        return ()

    @abstractmethod
    async def delete_commit(self, commit_id: str) -> None:
        """Delete a commit; machines made from it live on. One that is gone is no error."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close every connection that this object opened."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


@dataclass(frozen=True, slots=True)
class Usable:
    """Whether a backend can be used here."""

    yes: bool
    reason: str
    """Half a sentence: what was found."""


class BackendFactory(ABC):
    """Opens a backend as the settings say. Nothing heavy is imported before `open` or `probe`."""

    costs_money = False
    """Whether making a machine costs money: then it is made only when one is asked for."""

    @abstractmethod
    def usable(self, settings: Settings) -> Usable:
        """Whether to take this backend when the settings name none. May try it, and may block."""

    @abstractmethod
    def open(self, settings: Settings) -> Backend:
        """Open the backend. Raises `BackendUnavailable` or `SettingsError`."""

    @abstractmethod
    async def probe(self, settings: Settings) -> Sequence[Finding]:
        """Try everything that the backend needs, each thing once, up to the first failure.

        A machine is made and removed, unless that costs money.
        """
