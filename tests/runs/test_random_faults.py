"""Runs under random schedules of faults: kills, stops, full disks and odd replies.

Whatever is combined, a command ends by itself or by the kill, the run can be resumed until it
finishes with the right outputs, no reply in the journal is asked for again, and no machine is left.
``VERS_RLM_TEST_FAULTS`` is the number of schedules; each has its number as its seed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from dataclasses import dataclass, field, replace
from random import Random
from typing import TYPE_CHECKING, Final

import anyio
import pytest
from killing import BUBBLEWRAP, Killed
from lab import cell

from assumptions import needs_root
from interaction.users import traces
from models.servers import Failure, OpenAIServer, Raw, Reply
from small_disk import Disk

if TYPE_CHECKING:
    from pathlib import Path

    from anyio.abc import Process

    from models.servers import Answer, Request

pytestmark = [pytest.mark.slow, needs_root]

SCHEDULES: Final = int(os.environ.get("VERS_RLM_TEST_FAULTS", "50"))
TOGETHER: Final = 5
"""Schedules in one test, which run at the same time: most of each is waiting for processes."""

LAST_EVENT: Final = 60
"""A run without faults has about so many events."""

LAST_REQUEST: Final = 12
POLL_SECONDS: Final = 0.01
STOPPED_SECONDS: Final = 0.3
COMMAND_SECONDS: Final = 120
ATTEMPTS: Final = 12
"""Far more than a schedule has faults."""

SIGNATURE: Final = "-> files: list[str], words: list[str], rank: int"
OUTPUTS: Final = {"files": ["a", "right", "words"], "words": ["Word.", "Word."], "rank": 2}
CELLS: Final = (
    "writeFile('a', 'one'); before = vmSnapshot()",
    "import json; writeFile('words', json.dumps([llmQuery(f'Say word {n}.') for n in range(2)]))",
    "exec('rm -f left right'); results = branches(['Do it like left.', 'Do it like right.'],"
    " outputs='rank: int', score='rank');"
    " assert [result.status for result in results] == ['finished'] * 2; results[0].outputs",
)
LAST_CELL: Final = (
    "import json; FINAL(sorted(exec('ls').stdout.split()), json.loads(readFile('words')), 2)"
)
BRANCH_CELLS: Final = {
    "left": "writeFile('left', 'l'); FINAL(1)",
    "right": "writeFile('right', 'r'); FINAL(2)",
}

SAME: Final = "what the model would say"

ODD_REPLIES: Final[dict[str, Answer]] = {
    "a wait until the year 99999": Failure(
        429, {"error": {"message": "slow down"}}, {"retry-after": "Fri, 31 Dec 99999 23:59:59 GMT"}
    ),
    "a server error": Failure(503, "<html>down</html>", {"retry-after": "0"}),
    "a page instead of a completion": Failure(200, "<html>hello</html>"),
    "an error in a codec that is none": Failure(
        500, "error", {"content-type": "text/html; charset=klingon", "content-encoding": "none"}
    ),
    "an error that is nested deeply": Failure(400, "[" * 100_000, {"content-type": "text/json"}),
    "nothing": Raw(b""),
    "a stream of nonsense": Raw(b"data: {]\n\n"),
    "a stream that breaks": Reply("```python\nexit()", drop_after=2),
    "a stream that ends early": Reply("```python\nexit()\n```", drop_after=2, cut=True),
    "usage of 400 digits": Reply(SAME, usage={"completion_tokens": int("9" * 400)}),
    "usage below zero": Reply(SAME, usage={"prompt_tokens": -(10**6)}),
    "a reply that was filtered": Reply("```python\nexit()\n```", stop="content_filter"),
    "an unknown stop word": Reply("```python\nexit()\n```", stop="novel"),
}


@dataclass
class Schedule:
    """The faults of one run: what happens at which event or request. Each happens once."""

    seed: int
    faults: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    """The length of the journal at which each happens, and ``kill``, ``stop`` or ``fill``."""
    odd_replies: dict[int, str] = field(default_factory=dict[int, str])
    """By the number of the request, counted over all attempts."""

    def __post_init__(self) -> None:
        random = Random(self.seed)
        self._random = random
        self._asked = 0
        events = sorted(random.sample(range(1, LAST_EVENT), random.randint(1, 4)))
        self.faults = [(event, random.choice(["kill", "stop", "fill"])) for event in events]
        for _ in range(random.randint(0, 2)):
            number = random.randint(1, LAST_REQUEST)
            self.odd_replies[number] = random.choice(sorted(ODD_REPLIES))

    def answer(self, request: Request) -> Answer:
        """The reply to a request; odd when its time has come."""
        self._asked += 1
        odd = self.odd_replies.get(self._asked)
        answer = ODD_REPLIES[odd] if odd else Reply(SAME)
        if isinstance(answer, Reply) and answer.text == SAME:
            return replace(answer, text=_say(request))
        return answer

    def pages(self) -> int:
        """The number of pages that a full disk still takes."""
        return self._random.choice([0, 1, 8, 64])


def _say(request: Request) -> str:
    """The model: it repeats a cell until it has seen that it is done, whatever happened to it."""
    contents = [each["content"] for each in request.body["messages"] if each["role"] == "user"]
    if contents[-1].startswith("Say word"):
        return "Word."
    opening = next((each for each in reversed(contents) if "# Branch " in each), "")
    for name, code in BRANCH_CELLS.items():
        if f"like {name}." in opening:
            return cell(code)
    for number, code in enumerate(CELLS):
        if not any(f"cell {number} is done" in each for each in contents):
            return cell(f"{code}; print('cell {number}', 'is done')")
    return cell(LAST_CELL)


class Play:
    """One run, its schedule, and the attempts to finish it."""

    def __init__(self, run: Killed, disk: Disk, schedule: Schedule) -> None:
        self._run = run
        self._disk = disk
        self._schedule = schedule

    async def finish(self) -> None:
        """Start or resume the run until it finishes."""
        told: list[str] = []
        for _ in range(ATTEMPTS):
            begin = ["runs", "resume", self._run.run_id] if self._run.run_id else ["run", SIGNATURE]
            exit_code, output = await self._attempt(*begin, "--json")
            told.append(f"{exit_code}: {output}")
            if exit_code == 0:
                assert json.loads(output)["outputs"] == OUTPUTS, told
                return
            if any((self._run.home / "state" / "runs").glob("run-*")):
                self._run.note_paid()
        pytest.fail(f"schedule {self._schedule} did not finish: {told}")

    async def _attempt(self, *arguments: str) -> tuple[int | None, str]:
        """A command, with what the schedule does to it; its exit code and its output."""
        with (self._run.home / "log").open("ab") as log:
            process = await self._run.start(*arguments, stdout=subprocess.PIPE, stderr=log)
        assert process.stdout
        output = b""
        try:
            with anyio.fail_after(COMMAND_SECONDS):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._strike, process)
                    async for piece in process.stdout:
                        output += piece
                    await process.wait()
                    tasks.cancel_scope.cancel()
        finally:
            self._disk.release()
            await process.aclose()
        return process.returncode, output.decode()

    async def _strike(self, process: Process) -> None:
        """Do to a process what the schedule has left, until one of the faults kills it."""
        faults = self._schedule.faults
        while faults:
            while len(self._run.journal()) < faults[0][0]:  # noqa: ASYNC110 - another process writes it
                await anyio.sleep(POLL_SECONDS)
            _, fault = faults.pop(0)
            if fault == "kill":
                process.kill()
                return
            if fault == "fill":
                self._disk.leave("pages", self._schedule.pages())
                continue
            process.send_signal(signal.SIGSTOP)
            await anyio.sleep(STOPPED_SECONDS)
            process.send_signal(signal.SIGCONT)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(0, SCHEDULES, TOGETHER))
async def test_a_run_finishes_whatever_happens_to_it(tmp_path: Path, first: int):
    async with anyio.create_task_group() as tasks:
        for seed in range(first, min(first + TOGETHER, SCHEDULES)):
            tasks.start_soon(_play, tmp_path / str(seed), Schedule(seed))


async def _play(home: Path, schedule: Schedule) -> None:
    await anyio.Path(home / "state").mkdir(parents=True)
    disk = Disk(home / "state")
    try:
        async with OpenAIServer(schedule.answer) as server:
            run = Killed(home, server, BUBBLEWRAP)
            await Play(run, disk, schedule).finish()
            assert not run.paid_again, schedule
            await run.command("machines", "sweep")
            assert "running" not in await run.command("machines", "list"), schedule
            assert [each for each in traces(home) if not each.startswith("tmpfs")] == [], schedule
            assert disk.garbage() == set(), schedule
    finally:
        disk.unmount()
