"""What a kernel is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


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
