"""Cancelling a run: within a second, in every phase, and nothing is left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest
from lab import Speaker, Turns, cancelled_within, cell

from vers_rlm_mcp.machines import Fleet, MachineSpec
from vers_rlm_mcp.runs import events
from vers_rlm_mcp.testing import FakeBackend, FakeMachine
from vers_rlm_mcp.values import Completion, Message, Usage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lab import Lab

    from vers_rlm_mcp import rlm
    from vers_rlm_mcp.models import Model

SECONDS = 1.0


class Slow(FakeBackend):
    """Takes its time to hand over a machine that is there already."""

    def __init__(self) -> None:
        super().__init__()
        self.made = anyio.Event()

    async def create(
        self, spec: MachineSpec | None = None, *, labels: Mapping[str, str] | None = None
    ) -> FakeMachine:
        machine = await super().create(spec, labels=labels)
        self.made.set()
        await anyio.sleep_forever()
        return machine


def hanging(asked: anyio.Event, count: int = 1) -> Model:
    """A model that never answers; `asked` is set when `count` questions wait."""
    questions = 0

    async def answer(messages: Sequence[Message]) -> Completion:
        nonlocal questions
        questions += 1
        if questions == count:
            asked.set()
        await anyio.sleep_forever()
        return Completion("", Usage())

    return Speaker(answer)


async def cancelled(lab: Lab, model: Model, at: anyio.Event, sub_model: Model | None = None):
    """Cancel a run; see that it ends in time, is told as cancelled, and leaves nothing."""

    def watch(event: rlm.Event) -> None:
        if isinstance(event, events.CellOutput):
            at.set()

    await cancelled_within(
        SECONDS,
        lambda: lab.run("-> x", model, sub_model=sub_model, on_event=watch, max_llm_calls=99),
        at,
    )
    assert await lab.machines() == []
    (finished,) = lab.happened(events.RunFinished)
    assert (finished.status, finished.reason) == ("cancelled", "The run was cancelled.")
    assert lab.journal(finished.run_id)[-1]["status"] == "cancelled"


async def test_while_the_machine_is_made(lab: Lab):
    async with Slow() as slow:
        lab.fleet = Fleet(slow, lab.fleet.ledger, max_machines=4)
        await cancelled(lab, Turns(), slow.made)


async def test_while_the_model_thinks(lab: Lab):
    asked = anyio.Event()
    await cancelled(lab, hanging(asked), asked)


@pytest.mark.parametrize(
    "code",
    [
        "import time; time.sleep(600)",
        "while True: pass",
        "exec('sleep 600')",
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [2])\nwhile True: pass",
    ],
)
async def test_while_a_cell_runs_whatever_it_does(lab: Lab, code: str):
    started = anyio.Event()
    await cancelled(lab, Turns(cell(f"print('started', flush=True)\n{code}")), started)


async def test_while_many_sub_calls_are_under_way(lab: Lab):
    asked = anyio.Event()
    model = Turns(cell("llmQueryBatched([f'{i}' for i in range(50)])"))
    await cancelled(lab, model, asked, sub_model=hanging(asked, count=32))


async def test_while_a_command_runs_on_another_machine(lab: Lab):
    started = anyio.Event()
    code = "vmSwitch(vmBranch())\nprint('started', flush=True)\nexec('sleep 600')"
    await cancelled(lab, Turns(cell(code)), started)
