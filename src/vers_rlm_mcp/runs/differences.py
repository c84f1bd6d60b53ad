"""What differs between two machines or commits, the variables of their kernels included."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from vers_rlm_mcp.errors import KernelError, MachineError
from vers_rlm_mcp.machines.differences import Difference, FactChange, diff

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vers_rlm_mcp.kernel import Variable
    from vers_rlm_mcp.machines import Machine

    from .workbench import Workbench

ADDRESS = re.compile(r" at 0x[0-9a-f]+")
"""In what Python shows of many objects; it says nothing of their value."""


async def compare(
    bench: Workbench, first: str, second: str | None = None, *, path: str = "/"
) -> Difference:
    """Compare two machines or commits. Commits are restored to temporary machines for it.

    Args:
        bench: Where they are found.
        first: The id of what was.
        second: The id of what is; the current machine when None.
        path: The directory to look at.

    Raises:
        UnknownHandle: There is no such machine or commit.
        PathRefused: `path` is not absolute.
        MachineError: They cannot be looked at.
    """
    async with bench.using_machine(first) as old, bench.using_machine(second) as new:
        difference = await diff(old, new, roots=[path])
        try:
            facts = _variables(await _by_name(bench, old), await _by_name(bench, new))
        except (KernelError, MachineError) as error:
            note = f"Variables were not compared. {error}"
            return replace(difference, notes=(*difference.notes, note))
    counts = {**difference.counts, "variable": len(facts)}
    return replace(difference, facts=(*difference.facts, *facts), counts=counts)


async def _by_name(bench: Workbench, machine: Machine) -> Mapping[str, Variable]:
    return {variable.name: variable for variable in await bench.variables(machine)}


def _variables(old: Mapping[str, Variable], new: Mapping[str, Variable]) -> list[FactChange]:
    """What is seen to differ: of a large value only the type, the length and the beginning."""
    names = [*old, *(name for name in new if name not in old)]
    changes: list[FactChange] = []
    for name in names:
        was, now = old.get(name), new.get(name)
        if was is None or now is None or _seen(was) != _seen(now):
            changes.append(FactChange("variable", name, was and _text(was), now and _text(now)))
    return changes


def _seen(variable: Variable) -> tuple[object, ...]:
    return variable.type, variable.length, variable.digest, ADDRESS.sub("", variable.preview)


def _text(variable: Variable) -> str:
    length = "" if variable.length is None else f"[{variable.length:,}]"
    return f"{variable.type}{length} {variable.preview}"
