"""A model that knows no measure is held by limits, and told what it can do instead."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import anyio
import pytest
from family import Family, branching
from lab import Lab, Speaker, Turns, cell

from vers_rlm_mcp.errors import InputError
from vers_rlm_mcp.machines import Fleet
from vers_rlm_mcp.runs import events
from vers_rlm_mcp.values import Completion, Message, Usage

if TYPE_CHECKING:
    from collections.abc import Sequence

CAUGHT = """
try:
    {0}
except RuntimeError as error:
    print(error)
"""


class Insatiable(Speaker):
    """Says the same in every conversation that is offered to it; what it was told is kept."""

    def __init__(self, code: str) -> None:
        super().__init__(self._next, "insatiable:test")
        self._code = cell(code)

    async def _next(self, messages: Sequence[Message]) -> Completion:
        return Completion(self._code, Usage(10, 1))

    @property
    def told(self) -> str:
        """All that it was told, in all conversations."""
        return "\n".join(messages[-1].content for messages in self.asked)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ("branches(['p'] * 1000)", "at most 64 items after validation, not 1000"),
        (
            "branches(['p'] * 64)",
            "allows 16 machines alive at once: 1 are used, 15 left, 64 asked for, none granted. "
            "Ask for fewer at once",
        ),
        ("vmBranch(17)", "1 are used, 15 left, 17 asked for, none granted. Ask for fewer at once"),
        ("[vmBranch() for _ in range(17)]", "16 are used, 0 left, 1 asked for"),
        ("llmQueryBatched(['?'] * 31)", "allows 30 sub-calls: 0 are used, 30 left, 31 asked for"),
        ("[llmQuery('?') for _ in range(99)]", "30 are used, 0 left, 1 asked for, none granted"),
    ],
)
async def test_what_asks_for_too_much_is_refused_with_what_there_is(lab: Lab, call: str, told: str):
    model = Turns(cell(CAUGHT.format(call)), cell("FINAL('seen')"))
    result = await lab.run(
        "-> x", model, sub_model=Insatiable("pass"), settings={"max_machines": 16}
    )
    assert result.outputs == {"x": "seen"}
    assert told in model.told
    assert await lab.machines() == []


async def test_queries_that_only_query_end_at_the_deepest_level(lab: Lab):
    model = Insatiable(CAUGHT.format("print(rlmQuery('Do it all again.'))"))
    result = await lab.run("-> x", model, max_depth=2, max_iterations=2)
    assert result.status == "partial"
    assert "The query has no answer: All 1 steps are used." in output(lab)
    started = [event.child for event in lab.happened_anywhere(events.ChildStarted)]
    assert started == ["1", "1.1", "2", "2.1"]
    assert await lab.machines() == []


async def test_a_machine_that_is_gone_is_given_back_once(lab: Lab):
    model = Family(
        cell("rlmQuery('Ask like deep.'); FINAL(budget()['machines']['used'])"),
        deep=[cell("rlmQuery('Answer like last.'); FINAL('Two.')")],
        last=[cell("FINAL('One.')")],
    )
    assert (await lab.run("-> n: int", model, max_depth=2)).outputs == {"n": 1}
    assert len(lab.happened_anywhere(events.MachineDeleted)) == 2


async def test_branches_that_branch_and_query_and_copy_are_held_by_the_machines_of_all(lab: Lab):
    model = Insatiable(
        "for ask in [lambda: branches(['a'] * 2), lambda: rlmQuery('b'), vmBranch]:"
        + CAUGHT.format("print(ask())").replace("\n", "\n    ")
    )
    result = await lab.run(
        "-> x", model, max_depth=2, max_iterations=2, settings={"max_machines": 4}, seconds=90
    )
    assert result.status == "partial"
    assert "allows 4 machines alive at once: 4 are used, 0 left" in output(lab)
    assert "A branch cannot branch again here" in output(lab)
    assert await lab.machines() == []


async def test_branches_without_end_are_held_by_the_steps_of_all(lab: Lab):
    again = CAUGHT.format("branches(['like busy.'] * 4)")
    model = Family(*[cell(again)] * 3, cell("FINAL('seen')"), busy=[cell("pass")] * 20)
    result = await lab.run("-> x", model, seconds=90)
    assert result.outputs == {"x": "seen"}
    assert output(lab) == (
        "The budget allows 100 steps of branches and recursive queries: 100 are used, 0 left, "
        "4 asked for, none granted. Do the rest here, step by step, or hand in what there is.\n"
    )


async def test_one_that_ignores_its_budget_of_tokens_ends_with_what_there_is(lab: Lab):
    model = Insatiable("print(budget()['tokens']['left']); llmQuery('More?')")
    result = await lab.run("-> x", model, max_tokens=100)
    assert result.status == "partial"
    assert "budget of 100 tokens is used up" in result.reason
    assert "Budget left: 12 of 100 tokens." in model.told
    assert result.usage.tokens <= 100 + 11, "no more than the call in flight"


def output(lab: Lab) -> str:
    """All that cells have printed, in any conversation."""
    return "".join(event.text for event in lab.happened_anywhere(events.CellOutput))


async def test_checks_of_branches_that_leave_no_room_for_copies_wait_for_each_other(lab: Lab):
    plans = ["like this."] * 6
    model = Family(
        *branching(f"{plans}, 'n: int', verify='true'", "FINAL([r.verified for r in results])"),
        this=[cell("FINAL(1)")],
    )
    small = replace(lab, fleet=Fleet(lab.fleet.backend, lab.fleet.ledger, max_machines=9))
    result = await small.run("-> x: list", model, verify="true", settings={"max_machines": 9})
    assert result.outputs == {"x": [True] * 6}
    assert result.verified == "true"
    assert await lab.machines() == []


async def test_a_run_with_a_check_needs_a_machine_for_it(lab: Lab):
    with pytest.raises(InputError, match="needs 2 machines at once: raise VERS_RLM_MAX_MACHINES"):
        await lab.run("-> x", Turns(), verify="true", settings={"max_machines": 1})


async def test_branches_that_would_leave_no_machine_for_their_checks_are_not_made(lab: Lab):
    model = Turns(cell(CAUGHT.format("branches(['p'] * 3, verify='true')")), cell("FINAL('seen')"))
    await lab.run("-> x", model, settings={"max_machines": 4})
    assert "2 are used, 2 left, 3 asked for, none granted" in model.told


class Together(Family):
    """Keeps branches waiting until so many have asked, which they only do when all are at work."""

    def __init__(self, count: int, *own: str, **others: Sequence[str]) -> None:
        super().__init__(*own, **others)
        self._missing = count
        self._all = anyio.Event()

    async def complete(
        self, messages: Sequence[Message], *, max_tokens: int | None = None
    ) -> Completion:
        if "# Branch " in messages[-1].content:
            self._missing -= 1
            if not self._missing:
                self._all.set()
            await self._all.wait()
        return await super().complete(messages, max_tokens=max_tokens)


async def test_sixteen_branches_are_at_work_at_once_and_each_has_its_own_answer(real: Lab):
    names = [f"p{number}" for number in range(16)]
    model = Together(
        len(names),
        *branching(
            f"{[f'like {name}.' for name in names]}, outputs='own: list, n: int', score='n'",
            "FINAL([r.outputs['own'] for r in results], readFile('own'))",
        ),
        **{
            name: [
                cell(f"writeFile('own', {name!r})"),
                cell(f"FINAL([readFile('own')], {len(name)})"),
            ]
            for name in names
        },
    )
    result = await real.run("-> all: list, winner", model, seconds=100)
    assert result.outputs == {"all": [[name] for name in names], "winner": "p10"}
    assert await real.machines() == []
