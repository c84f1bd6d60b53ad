"""A run whose process is killed goes on: the same outputs, nothing left, nothing paid twice.

What is promised: a reply that is in the journal is never asked for again. One that was under way
when the process was killed may be, once for each time that it is killed.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import anyio
import pytest
from killing import killable
from three_plans import OUTPUTS, SIGNATURE, branching_model, needs_compiler

from interaction.users import traces

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from killing import Point

pytestmark = [needs_compiler, pytest.mark.slow]

REQUESTS = 16
"""Of the whole run: three of its own, and of the branches six, five and two."""

AT_ONCE = 3
"""Cases that run at the same time, since most of it is waiting for the branch that hangs."""


def own(event: str, step: int) -> Point:
    return {"in": None, "event": event, "step": step}


def child(path: str, event: str, step: int) -> Point:
    return {"in": path, "event": event, "step": step}


def about(event: str, path: str) -> Point:
    return {"event": event, "child": path}


TELLING: dict[str, Sequence[Point]] = {
    "a reply is there, and its cell has not run": [own("model_replied", 1)],
    "copies are being made": [{"event": "machine_made", "origin": "branched"}],
    "a branch was answered": [child("3", "model_replied", 1)],
    "the winner is done, and another hangs": [child("3", "step_finished", 2)],
    "a branch has won": [about("child_chosen", "3")],
    "twice in the branches": [child("3", "cell_started", 1), child("3", "cell_started", 2)],
}
EVENTS = ("model_asked", "model_replied", "cell_started", "cell_finished", "step_finished")
EVERY: dict[str, Sequence[Point]] = {
    str(point): [point]
    for point in (
        {"event": "run_started"},
        *(own(event, step) for event in EVENTS[:-1] for step in (1, 2, 3)),
        *(own("step_finished", step) for step in (1, 2)),
        *(own("checkpoint_made", step) for step in (0, 1, 2)),
        *(child(path, event, 1) for event in EVENTS for path in "123"),
        *(child(path, event, 2) for event in EVENTS for path in "13"),
        *(child(path, "verified", 2) for path in "13"),
        *(about(event, path) for event in ("child_started", "child_finished") for path in "123"),
        {"event": "commit_made"},
        {"event": "machine_switched"},
        {"event": "machine_deleted"},
    )
}
CASES = {**TELLING, **EVERY} if os.environ.get("VERS_RLM_TEST_KILLS") == "all" else TELLING


@pytest.mark.timeout(300)
@pytest.mark.parametrize("first", range(0, len(CASES), AT_ONCE))
async def test_a_run_that_was_killed_resumes_and_pays_for_nothing_twice(tmp_path: Path, first: int):
    async with anyio.create_task_group() as tasks:
        for number, name in enumerate(list(CASES)[first : first + AT_ONCE]):
            tasks.start_soon(kill_and_go_on, tmp_path / str(number), name)


async def kill_and_go_on(home: Path, name: str) -> None:
    async with killable(home, branching_model()) as run:
        begin = ["run", SIGNATURE]
        for point in CASES[name]:
            await run.kill_at(point, *begin)
            begin = ["runs", "resume", run.run_id]
        result = json.loads(await run.command(*begin, "--json"))
        assert result["outputs"] == OUTPUTS, name
        assert not run.paid_again, name
        assert max(run.asked.values()) <= 1 + len(CASES[name]), name
        assert len(run.asked) == REQUESTS, name
        listed = await run.command("machines", "list")
        assert "running" not in listed, name
        assert traces(run.home) == [], name
