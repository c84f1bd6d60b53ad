"""What cells ask of the host, and how guests that are not ours are answered."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from lab import Speaker, Turns, cell

from vers_rlm_mcp import rlm
from vers_rlm_mcp.errors import ModelFailed, UsageError, VersRlmError
from vers_rlm_mcp.kernel import Carried, HostCall
from vers_rlm_mcp.runs import Budget, Limits, RunRequest, events, repl_handlers
from vers_rlm_mcp.runs.context import CONCURRENT_SUB_CALLS, RunContext
from vers_rlm_mcp.runs.conversation import Conversation
from vers_rlm_mcp.runs.repl_handlers import CellCalls
from vers_rlm_mcp.runs.reply_source import Replies
from vers_rlm_mcp.store import Journals
from vers_rlm_mcp.values import Completion, Message, Usage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lab import Lab


async def echo(messages: Sequence[Message]) -> Completion:
    return Completion(messages[-1].content.upper(), Usage(1, 1))


async def outputs(lab: Lab, code: str, signature: str = "-> x: any", **options: Any) -> Any:
    """What a run of one cell hands in."""
    options = {"sub_model": Speaker(echo), **options}
    result = await lab.run(signature, Turns(cell(code)), max_iterations=1, **options)
    assert result.status == "finished", result
    return result.outputs["x"]


async def test_the_exit_code_of_a_remote_command_is_that_of_a_shell(lab: Lab):
    code = """
vmSwitch(vmBranch())
slow = exec("sleep 600", timeout=0.1)
FINAL([exec("exit 3").exit_code, exec("kill -9 $$").exit_code, slow.exit_code])
"""
    assert await outputs(lab, code) == [3, 128 + 9, None]


@pytest.mark.assumes("disk")
async def test_the_notes_name_what_a_copy_does_not_carry(lab: Lab):
    model = Turns(
        cell("import threading\nn, lock = 1, threading.Lock()\nbranch = vmBranch()"),
        cell("FINAL(1)"),
    )
    await lab.run("-> x: int", model)
    assert "A kernel started in the copy will not have these variables: lock (" in model.told


async def test_machines_made_are_held_to_the_budget(lab: Lab):
    code = """
told = []
for attempt in (lambda: vmBranch(3), lambda: vmBranch(2), lambda: vmBranch()):
    try:
        told.append(len(attempt()))
    except RuntimeError as error:
        told.append(str(error))
FINAL(told)
"""
    refused, made, full = await outputs(lab, code, settings={"max_machines": 3})
    assert "3 machines alive at once" in refused
    assert made == 2
    assert "3 machines alive at once" in full


async def test_a_batch_is_answered_in_order_and_one_failure_spares_the_others(lab: Lab):
    async def answer(messages: Sequence[Message]) -> Completion:
        if messages[-1].content == "b":
            raise ModelFailed("overloaded")
        return await echo(messages)

    code = "FINAL(llmQueryBatched(['a', 'b', 'c']))"
    assert await outputs(lab, code, sub_model=Speaker(answer)) == ["A", "[Error: overloaded]", "C"]
    failed = [event.error for event in lab.happened(events.SubCallFinished) if event.error]
    assert failed == ["overloaded"]


async def test_a_single_sub_call_that_fails_is_raised_in_the_cell(lab: Lab):
    async def answer(messages: Sequence[Message]) -> Completion:
        raise ModelFailed("overloaded")

    code = "try:\n    llmQuery('a')\nexcept RuntimeError as e:\n    FINAL(str(e))"
    assert await outputs(lab, code, sub_model=Speaker(answer)) == "overloaded"


async def test_as_many_sub_calls_are_under_way_as_a_key_allows_and_no_more(lab: Lab):
    under_way = most = 0
    full = anyio.Event()

    async def answer(messages: Sequence[Message]) -> Completion:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        if under_way == CONCURRENT_SUB_CALLS:
            full.set()
        await full.wait()
        await anyio.lowlevel.checkpoint()
        under_way -= 1
        return await echo(messages)

    code = "FINAL(llmQueryBatched([str(i) for i in range(100)]) == [str(i) for i in range(100)])"
    assert await outputs(lab, code, sub_model=Speaker(answer), max_llm_calls=100)
    assert most == CONCURRENT_SUB_CALLS


async def test_what_a_batch_spends_stops_the_rest_of_it(lab: Lab):
    async def answer(messages: Sequence[Message]) -> Completion:
        return Completion("ok", Usage(10))

    code = "FINAL(llmQueryBatched(['?'] * 60))"
    result = await lab.run(
        "-> x: any",
        Turns(cell(code)),
        sub_model=Speaker(answer),
        max_llm_calls=100,
        max_tokens=200,
    )
    answers: Any = result.outputs["x"]
    # Those under way when the limit was reached were paid for as well.
    assert 20 <= answers.count("ok") <= 20 + CONCURRENT_SUB_CALLS
    assert "budget of 200 tokens is used up" in answers[-1]


async def test_threads_of_a_cell_may_ask_at_once(lab: Lab):
    code = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(8) as pool:
    FINAL(list(pool.map(llmQuery, "abcdefgh")))
"""
    assert await outputs(lab, code) == list("ABCDEFGH")


@pytest.fixture
def calls(lab: Lab) -> Iterator[CellCalls]:
    """The functions of a run, as a guest reaches them."""
    budget = Budget(Limits(sub_calls=2, machines=3), now=0)
    model = Speaker(echo)
    task = rlm.Task(rlm.Signature.parse("-> x"))
    bench = lab.bench()
    with Journals(lab.settings.state_dir).new() as journal:
        context = RunContext(
            request=RunRequest("-> x"),
            fleet=lab.fleet,
            settings=lab.settings,
            replies=Replies(model, model),
            journal=journal,
            on_event=lab.events.append,
        )
        yield CellCalls(bench, Conversation(context, bench, budget, task))


FORGED: list[tuple[str, dict[str, Any]]] = [
    ("exec", {"command": 5}),
    ("exec", {"command": "ls", "timeout": "soon"}),
    ("exec", {"command": "ls", "timeout": -1}),
    ("exec", {"command": "ls", "timeout": float("nan")}),
    ("exec", {"command": "ls", "carried": {}}),
    ("exec", {"command": "ls", "self": None}),
    ("exec", {}),
    ("readFile", {"path": ["/etc/passwd"]}),
    ("writeFile", {"path": "/workspace/x", "base64": 5}),
    ("vmBranch", {"count": 0}),
    ("vmBranch", {"count": 65}),
    ("vmBranch", {"count": "many"}),
    ("vmBranch", {"carried": {"kept": [1]}, "count": 100}),
    ("vmSwitch", {"id": None}),
    ("vmRestore", {"commit": "c", "run": "other"}),
    ("currentVmId", {"extra": 1}),
    ("llmQuery", {"prompt": None}),
    ("llmQueryBatched", {"prompts": "abc"}),
    ("llmQueryBatched", {"prompts": [{}]}),
    ("budget", {"now": 0}),
    ("branches", {"plans": []}),
    ("branches", {"plans": ["a"] * 1000}),
    ("branches", {"plans": ["a"], "keep": "everything"}),
    ("branches", {"plans": ["a"], "seconds": -1}),
    ("rlmQuery", {"task": "x", "inputs": [1]}),
    ("chooseBranch", {"scores": {"1": "high"}, "winner": "1"}),
    ("vmDelete", {"id": "x"}),
    ("__class__", {}),
    ("_ask", {"prompt": "free"}),
    ("take_notes", {}),
]


@pytest.mark.parametrize(("name", "arguments"), FORGED)
async def test_a_forged_call_is_refused_and_nothing_is_done(
    lab: Lab, calls: CellCalls, name: str, arguments: dict[str, Any]
):
    with pytest.raises(UsageError, match=r"called wrongly|There is no"):
        await calls(HostCall(name, arguments))
    assert lab.events == []
    assert await lab.machines() == []


async def test_a_refused_batch_costs_nothing(calls: CellCalls):
    with pytest.raises(VersRlmError, match="none granted"):
        await calls(HostCall("llmQueryBatched", {"prompts": ["a", "b", "c"]}))
    assert await calls(HostCall("llmQueryBatched", {"prompts": ["a", "b"]})) == ["A", "B"]


async def test_forged_news_of_variables_is_only_told(lab: Lab, calls: CellCalls):
    forged = Carried(("all",), {"x": "because I say so"})
    commit = await calls(HostCall("vmSnapshot", {"carried": "me too"}, forged))
    assert [item.id for item in await lab.fleet.commits()] == [commit]
    (*_, note) = calls.take_notes()
    assert "x (because I say so)" in note
    assert calls.take_notes() == []


async def test_a_prompt_beyond_any_model_is_refused_before_it_is_paid_for(calls: CellCalls):
    with pytest.raises(UsageError, match="at most"):
        await calls(HostCall("llmQuery", {"prompt": "x" * (repl_handlers.SUB_CALL_MAX_CHARS + 1)}))


async def test_a_file_too_large_to_bring_over_is_refused(lab: Lab, calls: CellCalls):
    content = base64.b64encode(b"x" * 1000).decode()
    await calls(HostCall("writeFile", {"path": "/workspace/big", "base64": content}))
    size = repl_handlers.FILE_BYTES + 1
    await calls(HostCall("exec", {"command": f"truncate -s {size} big"}))
    with pytest.raises(UsageError, match="too large"):
        await calls(HostCall("readFile", {"path": "/workspace/big"}))


async def test_thousands_of_lost_variables_are_counted_and_not_all_named(lab: Lab):
    model = Turns(
        cell("for n in range(900): globals()[f'n{n}'] = n"),
        cell("import os\nos._exit(1)"),
        cell("FINAL(1)"),
    )
    await lab.run("-> x: int", model, settings={"checkpoints": "off"})
    assert "n9, " in model.told
    assert "and 851 more. Files are still there." in model.told


@pytest.mark.parametrize("code", ["llmQuery('?')", "llmQueryBatched(['?', '!'])[1]"])
async def test_waiting_for_a_sub_model_is_not_the_time_of_the_cell(lab: Lab, code: str):
    async def slow(_: Sequence[Message]) -> Completion:
        await anyio.sleep(1.5)  # three times what the cell may take
        return Completion("answer", Usage(1, 1))

    model = Turns(cell(f"FINAL({code})"))
    settings = {"cell_timeout": 0.5}
    result = await lab.run("-> x", model, sub_model=Speaker(slow), settings=settings)
    assert (result.status, result.outputs) == ("finished", {"x": "answer"})


async def test_the_time_of_a_cell_counts_again_after_a_sub_model_has_answered(lab: Lab):
    model = Turns(cell("llmQuery('?')\nwhile True: pass"), cell("FINAL('after')"))
    settings = {"cell_timeout": 1}
    result = await lab.run("-> x", model, sub_model=Turns("answer"), settings=settings)
    assert result.outputs == {"x": "after"}
    assert "time" in (result.steps[0].error or "")
