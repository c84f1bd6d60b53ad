"""Branches, recursive queries and checked answers, in real machines."""

from __future__ import annotations

import time

import pytest
from family import Family, branching
from lab import Lab, Speaker, Turns, cell

from vers_rlm_mcp.runs import events
from vers_rlm_mcp.values import Completion, Usage

WRITE = "writeFile('own', {0!r})\n"


@pytest.mark.on_vers_too
async def test_the_best_plan_wins_and_its_machine_is_the_current_one(real: Lab):
    model = Family(
        *branching(
            "['like a.', 'like b.', 'like c.'], outputs='n: int', score='n'",
            "FINAL(readFile('own'), [[r.outputs['n'], r.score, r.steps, bool(r.machine)] "
            "for r in results], [r['plan'] for r in results])",
            before="writeFile('own', 'parent')\nbase = 5",
        ),
        a=[cell(WRITE.format("a")), cell("FINAL(base + 1)")],
        b=[cell(WRITE.format("b") + "FINAL(base + 3)")],
        c=[cell("1/0"), cell("assert readFile('own') == 'parent'\nFINAL(base + 2)")],
    )
    result = await real.run("-> own, all: list, plans: list", model)
    assert result.outputs == {
        "own": "b",
        "all": [[6, 6.0, 2, False], [8, 8.0, 1, True], [7, 7.0, 2, False]],
        "plans": ["like a.", "like b.", "like c."],
    }
    assert await real.machines() == []
    assert [event.child for event in real.happened(events.ChildChosen)] == ["2"]


async def test_the_conversations_of_branches_begin_with_the_parents_word_for_word(real: Lab):
    model = Family(
        *branching("['like a.', 'like b.']", "FINAL(1)"),
        a=[cell("FINAL(1)")],
        b=[cell("FINAL(2)")],
    )
    await real.run("-> n: int", model)
    own, *branches, last = model.asked
    assert len(branches) == 2
    for asked in branches:
        assert tuple(asked[:2]) == tuple(own)
        assert asked[:3] == last[:3]
        assert "# Branch " in asked[3].content


async def test_a_function_can_be_the_judge_and_a_branch_that_fails_harms_no_other(real: Lab):
    model = Family(
        *branching(
            "['like a.', 'like b.', 'like c.'], outputs='x', score=lambda r: len(r.outputs['x'])",
            "FINAL(readFile('own'), [r.status for r in results], results[2].error)",
        ),
        a=[cell(WRITE.format("a") + "FINAL('long enough')")],
        b=[cell(WRITE.format("b") + "FINAL('short')")],
        c=["No code.", "Still none.", "None at all.", cell("print(x)"), cell("print(x)")],
    )
    result = await real.run("-> own, all: list, error", model)
    assert result.outputs["own"] == "a"
    assert result.outputs["all"] == ["finished", "finished", "partial"]
    assert "3 replies in a row held no code" in str(result.outputs["error"])
    assert await real.machines() == []


@pytest.mark.on_vers_too
async def test_without_a_score_a_check_decides_and_where_nothing_passes_nothing_changes(real: Lab):
    model = Family(
        *branching("['like a.', 'like b.'], verify='test -e right'", before=WRITE.format("parent")),
        *branching(
            "['like b.', 'like c.'], verify='test -e right'",
            "FINAL([seen, readFile('own')])",
            before="seen = [currentVmId() == results[0].machine, readFile('own')]",
        ),
        a=[cell(WRITE.format("a") + "writeFile('right', '')\nFINAL(1)")],
        b=[cell(WRITE.format("b") + "exec('rm -f right')\nFINAL(1)"), cell("FINAL(1)")],
        c=[cell("exec('rm right'); raise SystemExit"), *["nothing"] * 4],
    )
    result = await real.run("-> n: any", model, max_iterations=3)
    assert result.outputs["n"] == [[True, "a"], "a"]


@pytest.mark.on_vers_too
async def test_a_query_works_on_a_copy_with_a_fresh_kernel_and_hands_back_values(real: Lab):
    model = Family(
        cell(
            "writeFile('own', 'parent')\nmine = 1\n"
            "one = rlmQuery('like sub.', {'numbers': [1, 2, 3]}, 'total: int')\n"
            "two = rlm_query('like two.', outputs='a, b: int')\n"
            "FINAL(one, two, readFile('own'))"
        ),
        sub=[
            cell("assert 'mine' not in globals() and readFile('own') == 'parent'"),
            cell(WRITE.format("sub") + "FINAL(sum(numbers))"),
        ],
        two=[cell("FINAL('x', 2)")],
    )
    result = await real.run("-> one: int, two: dict, own", model)
    assert result.outputs == {"one": 6, "two": {"a": "x", "b": 2}, "own": "parent"}
    assert await real.machines() == []


async def test_files_of_a_query_come_back_and_what_both_changed_is_an_error(real: Lab):
    model = Family(
        cell(
            "import os; os.makedirs('work', exist_ok=True)\n"
            "writeFile('work/kept', 'parent'); writeFile('work/gone', 'parent')\n"
            "writeFile('other', 'parent')\n"
            "n = rlmQuery('like sub.', outputs='n: int', merge=['work'])\n"
            "first = [n, readFile('work/kept'), os.listdir('work'), readFile('other')]\n"
            "try:\n"
            "    rlmQuery('like late.', outputs='n: int', merge='work/kept')\n"
            "except Exception as error:\n"
            "    FINAL(first, str(error), readFile('work/kept'))\n"
        ),
        sub=[
            cell(
                "writeFile('work/kept', 'child'); writeFile('work/new', 'child')\n"
                "exec('rm work/gone'); writeFile('other', 'child'); FINAL(7)"
            )
        ],
        late=[cell("llmQuery('?'); writeFile('work/kept', 'late'); FINAL(8)")],
    )

    async def meanwhile(_: object) -> Completion:
        parent = await real.fleet.attach(real.happened(events.MachineMade)[0].machine_id)
        await parent.write("/workspace/work/kept", b"meanwhile")
        await parent.aclose()
        return Completion("Done.", Usage())

    asked = Speaker(meanwhile)
    result = await real.run("-> first: list, error, kept", model, sub_model=asked)
    outputs = result.outputs
    assert outputs["first"] == [7, "child", ["kept", "new"], "parent"]
    assert "/workspace/work/kept" in str(outputs["error"])
    assert "The query answered: {'n': 8}" in str(outputs["error"])
    assert outputs["kept"] == "meanwhile"
    (merged,) = real.happened(events.FilesMerged)
    assert sorted(merged.paths) == [f"/workspace/work/{name}" for name in ("gone", "kept", "new")]


async def test_at_the_deepest_level_a_query_is_one_call_of_the_sub_model(real: Lab):
    model = Turns(cell("FINAL(rlmQuery('How many?', {'text': 'a b'}, 'n: int'))"))
    sub_model = Turns('Two: {"n": 2}')
    result = await real.run("-> n: int", model, sub_model=sub_model, max_depth=0)
    assert result.outputs == {"n": 2}
    assert "a b" in sub_model.told
    assert result.sub_calls == 1


async def test_branches_do_not_branch_without_end(real: Lab):
    again = cell("try:\n    branches(['like a.'])\nexcept RuntimeError as e:\n    FINAL(str(e))")
    model = Family(*branching("['like a.']", "FINAL(results[0].outputs['x'])"), a=[again])
    result = await real.run("-> x", model)
    assert "cannot branch again" in str(result.outputs["x"])


@pytest.mark.parametrize(
    ("call", "word"),
    [
        ("branches(['p'] * 1000)", "64"),
        ("branches(['p'] * 64)", "machines alive at once"),
        ("branches([])", "at least 1"),
        ("branches('p')", "list of plans"),
        ("branches(['p'], score='missing')", "name of an output"),
        ("branches(['p'], outputs='n: nothing')", "nothing"),
        ("rlmQuery('p', {'a b': 1})", "name"),
        ("rlmQuery('p', [1])", "inputs"),
    ],
)
async def test_a_call_that_makes_no_sense_says_why_and_costs_nothing(
    real: Lab, call: str, word: str
):
    code = f"try:\n    {call}\nexcept Exception as e:\n    FINAL(str(e))"
    result = await real.run("-> x", Turns(cell(code)))
    assert word in str(result.outputs["x"])
    assert result.usage.tokens == 0


async def test_each_branch_has_its_share_and_one_that_runs_dry_harms_no_other(real: Lab):
    model = Family(
        *branching(
            "['like greedy.', 'like modest.'], 'n: int'",
            "FINAL(*[r.error or 'fine' for r in results])",
        ),
        greedy=[cell("1")] * 20,
        modest=[cell("1"), cell("FINAL(1)")],
    )
    result = await real.run("-> greedy, modest", model, max_tokens=111)
    assert "50 tokens" in str(result.outputs["greedy"])
    assert result.outputs["modest"] == "fine"


@pytest.mark.on_vers_too
async def test_a_branch_that_hangs_is_ended_by_its_own_limit(real: Lab):
    model = Family(
        *branching(
            "['like slow.', 'like quick.'], 'n: int', seconds=6",
            "FINAL(*[r.error or 'fine' for r in results])",
        ),
        slow=[cell("while True: pass")],
        quick=[cell("FINAL(1)")],
    )
    result = await real.run("-> slow, quick", model)
    assert "limit of 6 s" in str(result.outputs["slow"])
    assert result.outputs["quick"] == "fine"


async def test_the_time_of_children_does_not_count_for_the_cell(real: Lab):
    model = Family(
        *branching("['like slow.']", "FINAL(results[0].outputs['x'])"),
        slow=[cell("import time; time.sleep(0.8)"), cell("time.sleep(0.8); FINAL(1)")],
    )
    result = await real.run("-> x: int", model, settings={"cell_timeout": 1.2})
    assert result.outputs == {"x": 1}


@pytest.mark.on_vers_too
async def test_an_answer_is_checked_where_it_can_do_no_harm(real: Lab):
    check = "cat > got; rm -f answer; grep -q '\"n\": 2' got"
    model = Turns(cell("writeFile('answer', 'yes')\nFINAL(1)"), cell("FINAL(2)"))
    result = await real.run("-> n: int", model, verify=check, keep_machine=True)
    assert (result.outputs, result.verified) == ({"n": 2}, check)
    assert "[exit code: 1]" in model.told
    assert [event.accepted for event in real.happened(events.Verified)] == [False, True]
    bench = real.bench()
    assert (
        await bench.read_file("/workspace/answer", machine_id=result.machine_id, length=9) == b"yes"
    )
    await bench.delete(result.machine_id)


async def test_a_check_that_hangs_is_killed_and_refuses(real: Lab):
    model = Turns(cell("FINAL(1)"), '{"n": 1}')
    started = time.monotonic()
    result = await real.run(
        "-> n: int", model, verify="sleep 60", max_iterations=1, settings={"cell_timeout": 0.3}
    )
    assert time.monotonic() - started < 20
    assert (result.status, result.outputs, result.verified) == ("partial", {"n": 1}, None)
    assert "killed after" in result.reason
    assert await real.machines() == []


async def test_a_branch_of_a_machine_that_is_not_the_kernels_own_is_told_so(real: Lab):
    model = Family(
        *branching(
            "['like a.'], outputs='x'", "new = 1; again = branches(['like b.'], outputs='x')"
        ),
        cell("FINAL(again[0].outputs['x'])"),
        a=[cell("FINAL('a')")],
        b=[cell("FINAL(str('new' in globals()))")],
    )
    result = await real.run("-> x", model)
    assert result.outputs == {"x": "False"}
    told = next(asked[-1].content for asked in model.asked if "like b." in asked[-1].content)
    assert "# What this copy lacks" in told
    assert "is not the machine that your Python ran in" in told
