"""Values that pass between a kernel and its user."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from pydantic import JsonValue


@dataclass(frozen=True, slots=True)
class Carried:
    """Which variables a copy of a machine's disk carries."""

    kept: tuple[str, ...]
    lost: Mapping[str, str]
    """Why each other variable could not be saved or read back, by name."""


@dataclass(frozen=True, slots=True)
class HostCall:
    """A call from a cell to a function of the host. Only its form has been checked."""

    name: str
    arguments: dict[str, JsonValue]
    carried: Carried | None = None
    """What the cell saved of its variables, if it is about to copy the kernel's own machine."""


Handler: TypeAlias = Callable[[HostCall], Awaitable[JsonValue]]
"""Answers a call. A `VersRlmError` is raised in the cell with its text; any other error ends the
cell and is raised by `Kernel.run`. Calls are handled concurrently and cancelled with their cell."""


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable of a kernel."""

    name: str
    type: str
    length: int | None
    """Its `len`, if it has one."""
    preview: str
    digest: str | None = None
    """Equal for equal values; None if the value is large or not plain data."""
