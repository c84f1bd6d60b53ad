"""Whole runs: how they end, what they return, what they leave behind."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from lab import Speaker, Turns, cell

from vers_rlm_mcp.errors import (
    InputError,
    KernelBusy,
    MachineError,
    ModelFailed,
    ModelUnavailable,
    SignatureError,
    UnknownHandle,
)
from vers_rlm_mcp.runs import RunRequest, check_request, events
from vers_rlm_mcp.values import Completion, Message, Usage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lab import Lab


@pytest.mark.assumes("fake")
async def test_a_run_ends_with_final_and_its_machine_is_gone(lab: Lab):
    model = Turns(cell("n = len(task)"), cell("FINAL(answer=n)"), usage=Usage(10, 5))
    result = await lab.run("task -> answer: int", model, inputs={"task": "hello"})
    assert (result.status, result.outputs) == ("finished", {"answer": 5})
    assert [step.code for step in result.steps] == ["n = len(task)", "FINAL(answer=n)"]
    assert result.usage == Usage(20, 10)
    assert (result.backend, result.isolation, result.fidelity) == ("fake", "none", "disk")
    assert not result.kept
    assert await lab.machines() == []


async def test_the_events_tell_the_run_in_order(lab: Lab):
    await lab.run("task -> answer", Turns(cell("print(1)\nFINAL(task)")), inputs={"task": "x"})
    assert [event.kind() for event in lab.events] == [
        "machine_made",
        "run_started",
        "model_asked",
        "checkpoint_made",
        "model_replied",
        "cell_started",
        "cell_output",
        "cell_finished",
        "step_finished",
        "checkpoint_made",
        "run_finished",
    ]


async def test_a_wrong_answer_is_refused_and_the_right_one_taken(lab: Lab):
    model = Turns(cell("FINAL(answer='many')"), cell("FINAL(answer=3)"))
    result = await lab.run("-> answer: int", model)
    assert result.outputs == {"answer": 3}
    assert "FINAL was not accepted" in model.told


async def test_without_final_the_outputs_are_extracted(lab: Lab):
    model = Turns(cell("x = 6 * 7"), '{"answer": 42}')
    result = await lab.run("-> answer: int", model, max_iterations=1)
    assert (result.status, result.outputs) == ("extracted", {"answer": 42})
    assert "All 1 steps are used" in result.reason


async def test_empty_replies_and_replies_without_code_are_answered(lab: Lab):
    model = Turns("", "I think it is 4.", cell("FINAL(4)"))
    result = await lab.run("-> answer: int", model)
    assert result.outputs == {"answer": 4}
    assert [step.code for step in result.steps] == ["", "FINAL(4)"], "an empty one is no step"


@pytest.mark.parametrize(
    ("limits", "word"),
    [({"max_tokens": 25}, "25 tokens"), ({"max_usd": 0.05}, "0.05 USD")],
)
async def test_a_limit_ends_the_run_with_what_there_is(lab: Lab, limits: dict[str, Any], word: str):
    model = Turns(*[cell("FINAL(good=1, bad='no')")] * 9, usage=Usage(10, 0, usd=0.02))
    result = await lab.run("-> good: int, bad: int", model, **limits)
    assert result.status == "partial"
    assert word in result.reason
    assert result.outputs == {"good": 1}
    assert await lab.machines() == []


async def test_the_settings_are_the_upper_limit(lab: Lab):
    model = Turns(*[cell("1")] * 9, usage=Usage(10))
    result = await lab.run("-> x", model, max_tokens=100, settings={"max_tokens": 15})
    assert result.usage.tokens == 20
    assert "15 tokens" in result.reason


@pytest.mark.assumes("quick")
async def test_the_time_limit_is_kept_in_the_midst_of_a_cell(lab: Lab):
    model = Turns(cell("FINAL(good=1, bad='no')"), cell("print('so far')\nwhile True: pass"))
    result = await lab.run("-> good: int, bad: int", model, max_seconds=1)
    # The cell is interrupted and the machine deleted after the limit; see `benchmarks/` for how
    # long that takes on a machine that has nothing else to do.
    assert 1 <= result.seconds < 2
    assert (result.status, result.outputs) == ("partial", {"good": 1})
    assert "limit of 1 s" in result.reason
    assert result.steps[1].code.endswith("while True: pass")
    assert result.steps[1].output == "so far\n"
    assert await lab.machines() == []


async def test_a_time_limit_that_ends_while_the_machine_is_made_says_so(lab: Lab):
    with pytest.raises(MachineError, match="longer than the run's limit"):
        await lab.run("-> x", Turns(), max_seconds=1e-6)
    assert await lab.machines() == []


async def test_sub_calls_have_a_limit_and_the_cell_learns_of_it(lab: Lab):
    code = (
        "try:\n    llmQueryBatched(['a', 'b', 'c'])\nexcept RuntimeError as e:\n    FINAL(str(e))"
    )
    result = await lab.run("-> x", Turns(cell(code)), max_llm_calls=2)
    assert "allows 2 sub-calls" in str(result.outputs["x"])
    assert result.sub_calls == 0


async def test_a_cell_that_never_ends_is_stopped_and_the_run_continues(lab: Lab):
    model = Turns(cell("x = 1\nwhile True: pass"), cell("FINAL(x)"))
    result = await lab.run("-> x: int", model, settings={"cell_timeout": 0.3})
    assert result.outputs == {"x": 1}
    assert "time limit of 0.3 s" in model.told


async def test_a_machine_that_is_lost_ends_the_run_with_what_there_is(lab: Lab):
    async def answer(messages: Sequence[Message]) -> Completion:
        if len(messages) > 2:
            (machine,) = await lab.machines()
            await lab.fleet.backend.delete(machine)
        return Completion(cell("FINAL(good=1, bad='no')"), Usage())

    result = await lab.run("-> good: int, bad: int", Speaker(answer))
    assert (result.status, result.outputs) == ("partial", {"good": 1})
    assert "deleted" in result.reason


async def test_a_model_that_cannot_be_used_is_an_error_at_the_first_step(lab: Lab):
    with pytest.raises(ModelUnavailable, match="no such key"):
        await lab.run("-> x", Turns(ModelUnavailable("no such key")))
    assert await lab.machines() == []
    (finished,) = lab.happened(events.RunFinished)
    assert (finished.status, finished.reason) == ("failed", "no such key")


@pytest.mark.parametrize("error", [ModelUnavailable("gone"), ModelFailed("overloaded")])
async def test_a_model_that_fails_later_ends_the_run_with_what_there_is(lab: Lab, error: Exception):
    result = await lab.run("-> x: int, y: int", Turns(cell("FINAL(x=1, y='')"), error))
    assert (result.status, result.outputs) == ("partial", {"x": 1})
    assert str(error) in result.reason


@pytest.mark.parametrize(
    "request_",
    [
        {"max_iterations": 0},
        {"max_llm_calls": -1},
        {"max_seconds": 0},
        {"max_tokens": -5},
        {"max_usd": float("nan")},
        {"inputs": {"unknown": 1}},
    ],
)
async def test_a_senseless_request_is_refused_before_a_machine_is_made(
    lab: Lab, request_: dict[str, Any]
):
    with pytest.raises(InputError):
        await lab.run("-> x", Turns(), **request_)
    with pytest.raises(SignatureError):
        await lab.run("no arrow", Turns())
    assert lab.events == []


async def test_a_limit_of_money_needs_a_price(lab: Lab):
    model = Turns()
    model.price = None
    with pytest.raises(InputError, match="price of turns:test is not known"):
        await lab.run("-> x", model, max_usd=1)


async def test_an_unknown_machine_is_refused_by_name(lab: Lab):
    with pytest.raises(UnknownHandle, match="nowhere"):
        await lab.run("-> x", Turns(), machine_id="nowhere")


@pytest.mark.assumes("disk")
async def test_a_kept_machine_is_the_one_that_is_current_with_its_variables(lab: Lab):
    model = Turns(
        cell("found = {'a': [1, 2]}\nimport threading\nlock = threading.Lock()"),
        cell("branch = vmBranch()"),
        cell("vmSwitch(branch); FINAL(branch)"),
    )
    result = await lab.run("-> branch", model, keep_machine=True)
    assert result.kept
    assert await lab.machines() == [result.machine_id] == [result.outputs["branch"]]
    assert "lock" in model.told
    assert "found" in await lab.cell(lab.bench(), "print(*globals())", result.machine_id)
    again = await lab.run(
        "-> found: dict", Turns(cell("FINAL(found)")), machine_id=result.machine_id
    )
    assert again.outputs == {"found": {"a": [1, 2]}}


@pytest.mark.assumes("disk")
async def test_variables_that_a_kept_machine_may_lose_are_named(lab: Lab):
    model = Turns(cell("import threading\nlock = threading.Lock()\nFINAL(1)"))
    result = await lab.run("-> x: int", model, keep_machine=True)
    (warning,) = result.warnings
    assert "lock" in warning
    assert "the kept machine" in warning


async def test_later_variables_of_a_kept_machine_are_not_undone_by_a_later_run(lab: Lab):
    kept = await lab.run("-> x: int", Turns(cell("n = 1\nFINAL(n)")), keep_machine=True)
    await lab.cell(lab.bench(), "n += 1", kept.machine_id)
    later = await lab.run("-> x: int", Turns(cell("FINAL(n)")), machine_id=kept.machine_id)
    assert later.outputs == {"x": 2}


@pytest.mark.assumes("disk")
async def test_a_machine_that_a_run_works_on_is_not_taken_from_it(lab: Lab):
    machine = (await lab.fleet.create()).id
    refused: list[str] = []

    async def answer(messages: Sequence[Message]) -> Completion:
        with pytest.raises(KernelBusy) as caught:
            await lab.run("-> x", Turns(), machine_id=machine)
        refused.append(str(caught.value))
        with pytest.raises(KernelBusy):
            await lab.cell(lab.bench(), "1", machine)
        carried = (await lab.bench().snapshot(machine)).carried
        assert carried
        assert "not saved" in carried.lost["all variables"]
        return Completion(cell("FINAL(1)"), Usage())

    result = await lab.run("-> x: int", Speaker(answer), machine_id=machine)
    assert result.outputs == {"x": 1}
    assert machine in refused[0]
    assert await lab.cell(lab.bench(), "1", machine) == "1"


async def test_a_machine_that_was_given_is_never_deleted(lab: Lab):
    machine = await lab.fleet.create()
    model = Turns(cell("vmBranch(2)\nwriteFile('note', 'hi')\nFINAL(1)"))
    result = await lab.run("-> x: int", model, machine_id=machine.id)
    assert (result.machine_id, result.kept) == (machine.id, True)
    assert await lab.machines() == [machine.id]
    assert "hi" in await lab.cell(lab.bench(), "print(readFile('note'))", machine.id)


async def test_budget_in_a_cell_tells_the_truth(lab: Lab):
    model = Turns(cell("llmQuery('?'); vmBranch(); FINAL(budget())"), usage=Usage(7, 3, usd=0.5))
    sub_model = Turns("!", usage=Usage(100, 1, usd=0.25))
    result = await lab.run(
        "-> budget: dict", model, sub_model=sub_model, max_tokens=1000, max_usd=2, max_llm_calls=4
    )
    budget: Any = result.outputs["budget"]
    assert budget["tokens"] == {"used": 111, "limit": 1000, "left": 889}
    assert budget["usd"] == {"used": 0.75, "limit": 2, "left": 1.25}
    assert budget["sub_calls"] == {"used": 1, "limit": 4, "left": 3}
    assert budget["iterations"]["used"] == 1
    assert budget["machines"]["used"] == 2
    assert 0 < budget["seconds"]["used"] < 20
    assert result.usage == Usage(107, 4, usd=0.75)


async def test_many_runs_at_once_keep_to_themselves(lab: Lab):
    model = Turns(cell("if n % 5 == 0: vmBranch()"), cell("FINAL(n * 2)"))
    answers: dict[int, Any] = {}

    async def one(number: int) -> None:
        result = await lab.run("n: int -> doubled: int", model, inputs={"n": number})
        answers[number] = result.outputs["doubled"]

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(one, number)
    assert answers == {number: 2 * number for number in range(20)}
    assert await lab.machines() == []


@pytest.mark.assumes("local")
async def test_a_run_leaves_no_open_files(lab: Lab):
    async def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - it lists itself

    await lab.run("-> x: int", Turns(cell("FINAL(1)")))
    before = await open_files()
    await lab.run("-> x: int", Turns(cell("vmBranch(); FINAL(1)")))
    assert await open_files() == before


@pytest.mark.parametrize("name", ["print", "len", "str", "list", "type", "sorted", "FINAL", "exec"])
def test_an_input_that_would_hide_a_function_of_cells_is_refused(name: str):
    with pytest.raises(SignatureError, match="function of the REPL; give the input another name"):
        check_request(RunRequest(f"{name} -> x", inputs={name: "a"}))


@pytest.mark.parametrize("name", ["input", "id", "format", "text", "answer", "hash"])
def test_an_input_may_have_a_name_that_is_common_for_data(name: str):
    check_request(RunRequest(f"{name} -> x", inputs={name: "a"}))
