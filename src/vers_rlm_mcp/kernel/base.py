"""What a kernel needs of a machine, and what it gives back."""

# ruff: noqa: D102 - the protocols promise what `machines` says of the same methods

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from anyio.abc import ByteReceiveStream, ByteSendStream

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


class GuestExit(Protocol):
    """How a process in a machine ended: by itself, with a code, or by a signal (code None)."""

    @property
    def code(self) -> int | None: ...


class GuestProcess(Protocol):
    """A process in a machine, as `machines.Process` promises it."""

    @property
    def stdin(self) -> ByteSendStream: ...
    @property
    def stdout(self) -> ByteReceiveStream: ...
    @property
    def stderr(self) -> ByteReceiveStream: ...
    async def wait(self) -> GuestExit: ...
    async def aclose(self) -> None: ...


class GuestMachine(Protocol):
    """The machine that a kernel lives in, as `machines.Machine` promises it."""

    async def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> GuestProcess: ...
    async def write(self, path: str, data: bytes, *, mode: int = 0o644) -> int: ...


@dataclass(frozen=True, slots=True)
class Carried:
    """Which variables went along with a copy of a machine's disk."""

    kept: tuple[str, ...]
    lost: Mapping[str, str]
    """The reason, by the name of each variable that could not be saved or read back."""


@dataclass(frozen=True, slots=True)
class HostCall:
    """A call from a cell to a function of the host. Nothing in it has been vouched for."""

    name: str
    arguments: dict[str, Json]
    carried: Carried | None = None
    """Before a copy of the kernel's own machine: what the cell saved of its variables."""


Handler: TypeAlias = Callable[[HostCall], Awaitable[Json]]
"""Answers a call. A `VersRlmError` is raised in the cell, with its text; anything else ends the
run of the cell with that error. Calls are handled concurrently, and cancelled with their cell."""

CellStatus = Literal["ok", "error", "final", "timeout", "died", "interrupted"]


@dataclass(frozen=True, slots=True)
class Final:
    """What a cell handed in through FINAL."""

    args: list[Json]
    kwargs: dict[str, Json]


@dataclass(frozen=True, slots=True)
class CellResult:
    """What became of a cell."""

    status: CellStatus
    output: str
    """What was written to standard output and error, whoever wrote it, and the echo of the last
    expression: beginning and end within the kernel's limit, with what was left out said."""
    output_bytes: int
    """How much was written in all."""
    error: str | None
    """For the model: the traceback with the cell's own lines, or what happened to the kernel."""
    final: Final | None
    seconds: float
    lost: tuple[str, ...] = ()
    """The variables that are gone because the kernel had to be started anew."""


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable of a kernel."""

    name: str
    type: str
    length: int | None
    """What `len` says, where it says anything."""
    preview: str
    digest: str | None = None
    """The same for equal values; None for what is large, or not plain data."""
