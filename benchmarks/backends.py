"""What a machine costs on a backend, without a kernel: `python -m benchmarks.backends [ROUNDS]`.

The backend is the one of the settings in the environment; ``VERS_RLM_BACKEND=emulator`` starts a
Vers service on this computer. It also runs in the test host of micro-VMs.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from typing import TYPE_CHECKING, TypeVar

import anyio

from vers_rlm_mcp.machines import open_fleet, run_command
from vers_rlm_mcp.settings import Settings

from .tables import Section, computer
from .vers_exec import start_emulator

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from vers_rlm_mcp.machines import Fleet, Machine

ROUNDS = 5
MANY = 4
COMMAND_SECONDS = 300

NOTES = [
    "Through the fleet and its ledger. A copy counts as made when a command has ended in it; "
    "`exec` is a shell that says a word, on a machine that has run another before.",
]

T = TypeVar("T")


async def measure(settings: Settings, rounds: int) -> Section:
    """Make machines and copies of them; each round with its own machine."""
    async with open_fleet(settings) as fleet:
        column = fleet.backend.name
        section = Section("Backends", [column], computer(), notes=[*NOTES])
        for _ in range(rounds):
            await _round(fleet, section, column)
    return section


async def _round(fleet: Fleet, section: Section, column: str) -> None:
    async def timed(what: str, act: Awaitable[T]) -> T:
        started = time.perf_counter()
        result = await act
        section.cell(what, "ms", column).values.append(1000 * (time.perf_counter() - started))
        return result

    machine = await timed("create", fleet.create())
    try:
        await _said(machine)
        await timed("exec", _said(machine))
        await timed("branch 1", _branched(fleet, machine, 1))
        await timed(f"branch {MANY}", _branched(fleet, machine, MANY))
        commit = await timed("snapshot", fleet.snapshot(machine))
        await timed("restore", _restored(fleet, commit.id))
        await fleet.delete_commit(commit.id)
    finally:
        for info in await fleet.list():
            await fleet.delete(info.id)


async def _said(*machines: Machine) -> None:
    async def say(machine: Machine) -> None:
        result = await run_command(machine, ["sh", "-c", "echo word"], timeout=COMMAND_SECONDS)
        assert result.stdout.text == "word\n", result

    async with anyio.create_task_group() as tasks:
        for machine in machines:
            tasks.start_soon(say, machine)


async def _branched(fleet: Fleet, machine: Machine, count: int) -> Sequence[Machine]:
    copies = await fleet.branch(machine, count)
    await _said(*copies)
    return copies


async def _restored(fleet: Fleet, commit: str) -> Machine:
    machine = await fleet.restore(commit)
    await _said(machine)
    return machine


def main() -> None:
    """Measure, and print the table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    emulator = None
    with tempfile.TemporaryDirectory(prefix="vers-rlm-bench-") as directory:
        if os.environ.get("VERS_RLM_BACKEND") == "emulator":
            emulator, facts = start_emulator("--state", f"{directory}/vers")
            os.environ.update(facts["environment"], VERS_RLM_BACKEND="vers")
        try:
            settings = Settings.model_validate({"state_dir": f"{directory}/state"})
            print(anyio.run(measure, settings, rounds).markdown())
        finally:
            if emulator:
                emulator.terminate()
                emulator.wait()


if __name__ == "__main__":
    main()
