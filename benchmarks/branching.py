"""What branches cost: sixteen children at once on bubblewrap and on the Vers emulator.

The children's model is in the same process and thinks for a while. The first time that it has been
asked by all of them, their machines stand ready, and disk and memory are looked at.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from vers_rlm_mcp import rlm, runs
from vers_rlm_mcp.machines import open_fleet
from vers_rlm_mcp.models import FREE, Model
from vers_rlm_mcp.runs import events
from vers_rlm_mcp.settings import Settings
from vers_rlm_mcp.values import Completion, Usage

from .processes import read, tree_of
from .tables import Section, computer
from .vers_exec import start_emulator

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from vers_rlm_mcp.machines import Fleet
    from vers_rlm_mcp.values import Message

ROUNDS = 3
CHILDREN = 16
THINK_SECONDS = 0.5
STEPS = 4
"""Of each child: it thinks for two seconds in all."""

BLOCK = 512
"""Bytes of what `stat` counts in."""

_PSS = re.compile(r"^Pss: +(\d+) kB", re.MULTILINE)

BUBBLEWRAP, VERS = "bubblewrap", "Vers emulator"

PREPARE = "data = list(range(100_000))\nwriteFile('data', 'x' * 1_000_000)\n"
AT_ONCE = f"{PREPARE}results = branches(['Go on.'] * {CHILDREN}, outputs='n: int', keep='none')"
IN_A_ROW = (
    f"{PREPARE}results = []\nfor _ in range({CHILDREN}):\n"
    "    results += branches(['Go on.'], outputs='n: int', keep='none')"
)

NOTES = [
    f"Each child has {STEPS} steps, before each of which its model thinks for {THINK_SECONDS} s; "
    "the machine has a list of 100,000 numbers and a file of 1 MB.",
    "Until a child is at work: from the start of the cell until all models have been asked for the "
    "first time, by the number of children. Disk is what has been added to the state directories "
    "meanwhile; memory is that of all processes, in proportion where they share it (PSS).",
    "A machine of the emulator is one of bubblewrap's behind HTTP and SSH on loopback; what a VM "
    "would take it does not tell.",
]


class _Thinker(Model):
    """Writes what the run's own conversation does, and thinks for its children.

    Args:
        code: The run's first cell.
        all_asked: Called when all children have asked for the first time.
    """

    name = "thinker:bench"
    price = FREE

    def __init__(self, code: str, all_asked: Callable[[], None]) -> None:
        self._code = code
        self._all_asked = all_asked
        self._asked = 0

    async def complete(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int | None = None,  # noqa: ARG002 - replies are short
    ) -> Completion:
        opening = max(place for place, each in enumerate(messages) if _opens(each))
        said = sum(message.role == "assistant" for message in messages[opening:])
        if opening == 1:
            return _reply("FINAL(sum(r.outputs['n'] for r in results))" if said else self._code)
        self._asked += said == 0
        if said == 0 and self._asked == CHILDREN:
            self._all_asked()
        await anyio.sleep(THINK_SECONDS)
        return _reply("FINAL(len(data))" if said == STEPS - 1 else "len(data)")

    async def aclose(self) -> None:
        pass


def _opens(message: Message) -> bool:
    return message.role == "user" and message.content.startswith(("# Task", "# Branch"))


def _reply(code: str) -> Completion:
    return Completion(f"```python\n{code}\n```", Usage())


async def measure(*, rounds: int | None = None) -> Section:
    """Let children be at work at once and in a row, on each backend."""
    section = Section("Branches", [BUBBLEWRAP, VERS], computer(), notes=[*NOTES])
    for _ in range(rounds or ROUNDS):
        for column in section.columns:
            with (
                tempfile.TemporaryDirectory(prefix="vers-rlm-bench-") as name,
                _service(column, Path(name)) as process,
            ):
                await _Round(section, column, Path(name), process).perform()
    return section


@contextmanager
def _service(column: str, directory: Path) -> Generator[int]:
    """The process below which machines are: this one, or an emulator, with its state in there."""
    if column != VERS:
        yield os.getpid()
        return
    emulator, facts = start_emulator("--fork-kernels", "--state", str(directory / "vers"))
    try:
        os.environ.update(facts["environment"])
        yield emulator.pid
    finally:
        emulator.terminate()
        emulator.wait()


@dataclass
class _Round:
    section: Section
    column: str
    directory: Path
    process: int

    async def perform(self) -> None:
        backend = "bubblewrap" if self.column == BUBBLEWRAP else "vers"
        settings = Settings.model_validate(
            {
                "backend": backend,
                "state_dir": self.directory / "state",
                "max_machines": CHILDREN + 1,
            }
        )
        async with open_fleet(settings) as fleet:
            await self.run(IN_A_ROW, "in a row", fleet, settings)
            await self.run(AT_ONCE, "at once", fleet, settings)

    async def run(self, code: str, how: str, fleet: Fleet, settings: Settings) -> None:
        """A run whose first cell is this code, with what it takes."""
        before: list[float] = []

        def on_event(event: rlm.Event) -> None:
            if isinstance(event, events.CellStarted) and event.step == 1:
                before.extend((time.monotonic(), disk_of(self.directory), held_by(self.process)))

        def all_asked() -> None:
            if code is AT_ONCE:
                now = (time.monotonic(), disk_of(self.directory), held_by(self.process))
                seconds, disk, memory = (b - a for a, b in zip(before, now, strict=True))
                self.add("time until a child is at work", "ms", seconds / CHILDREN * 1000)
                self.add("disk of a child", "MB", disk / CHILDREN / 1e6)
                self.add("memory of a child", "MB", memory / CHILDREN / 1e6)

        model = _Thinker(code, all_asked)
        request = runs.RunRequest("-> n: int")
        result = await runs.run(
            request, fleet=fleet, model=model, sub_model=model, settings=settings, on_event=on_event
        )
        assert result.outputs == {"n": CHILDREN * 100_000}, result
        self.add(f"{CHILDREN} children {how}", "s", result.steps[0].seconds)

    def add(self, what: str, unit: str, value: float) -> None:
        self.section.cell(what, unit, self.column).values.append(value)


def disk_of(directory: Path) -> int:
    """What everything below a directory takes on the disk, in bytes."""
    return sum(
        os.lstat(os.path.join(place, name)).st_blocks * BLOCK  # noqa: PTH118 - many, and hot
        for place, _, names in os.walk(directory)
        for name in names
    )


def held_by(root: int) -> int:
    """The memory of a process and its descendants, what is shared in proportion, in bytes."""
    return sum(
        int(found[1]) * 1024
        for pid in tree_of(root)
        if (found := _PSS.search(read(Path(f"/proc/{pid}/smaps_rollup"))))
    )
