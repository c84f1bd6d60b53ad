"""Going on with a run that is on record, and replaying one."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from family import Family, branching
from lab import Interrupted, Lab, Speaker, Turns, cell, stop_when

from vers_rlm_mcp.errors import (
    MachineError,
    ModelFailed,
    ModelUnavailable,
    UnknownHandle,
    UsageError,
)
from vers_rlm_mcp.runs import (
    Changes,
    events,
    existing_checkpoints,
    load_record,
    next_step_hint,
    render_lineage,
    run_lineage,
    summaries,
    summary,
)
from vers_rlm_mcp.store import Journals
from vers_rlm_mcp.values import Completion, Usage

if TYPE_CHECKING:
    from collections.abc import Callable

    from vers_rlm_mcp import rlm

EACH_STEP: dict[str, Any] = {"checkpoints": "step"}

COUNTING = [
    cell("n = 1; writeFile('n', '1')"),
    cell("n += 1; exec(f'echo {n} >> n')"),
    cell("n += 1; exec(f'echo {n} >> n')"),
    cell("FINAL(n, readFile('n').split())"),
]
COUNTED = {"n": 3, "lines": ["12", "3"]}
SIGNATURE = "-> n: int, lines: list[str]"


async def broken_off(lab: Lab, model: Turns, at: Callable[[rlm.Event], None], **how: Any) -> str:
    """A run that ends in the midst; its id."""
    with pytest.raises((Interrupted, BaseExceptionGroup)):
        await lab.run(SIGNATURE, model, on_event=at, settings=EACH_STEP, **how)
    return lab.journal_ids()[-1]


@pytest.mark.parametrize("kind", [events.ModelAsked, events.ModelReplied, events.CellFinished])
@pytest.mark.parametrize("step", [1, 2, 3, 4])
async def test_a_run_that_broke_off_resumes_and_pays_for_nothing_twice(
    lab: Lab, kind: type[rlm.Event], step: int
):
    model = Turns(*COUNTING, usage=Usage(10, 1, usd=0.5))
    run_id = await broken_off(lab, model, stop_when(kind, step), max_iterations=len(COUNTING))
    result = await lab.resume(run_id, model, settings=EACH_STEP)
    assert (result.status, result.outputs) == ("finished", COUNTED)
    assert [each.number for each in result.steps] == [1, 2, 3, 4]
    assert len(model.asked) == len(COUNTING)
    assert result.usage.usd == pytest.approx(0.5 * len(COUNTING))
    assert await lab.machines() == []


@pytest.mark.parametrize("policy", ["off", "change", "destructive"])
async def test_steps_after_the_last_checkpoint_are_run_again_without_asking_again(
    real: Lab, policy: str
):
    model = Turns(
        cell("writeFile('n', '1'); print(llmQuery('How many?'))"),
        cell("exec('echo 2 >> n')"),
        cell("FINAL(readFile('n'))"),
    )
    sub_model = Turns("Many.")
    settings = {"checkpoints": policy}
    with pytest.raises((Interrupted, BaseExceptionGroup)):
        await real.run(
            "-> n",
            model,
            sub_model=sub_model,
            settings=settings,
            on_event=stop_when(events.ModelReplied, 3),
        )
    (run_id,) = real.journal_ids()
    result = await real.resume(run_id, model, sub_model=sub_model, settings=settings)
    assert result.outputs == {"n": "12\n"}
    assert (len(model.asked), len(sub_model.asked)) == (3, 1)


@pytest.mark.assumes("disk")
async def test_what_was_said_of_a_cell_is_not_said_again_of_a_later_one(lab: Lab):
    model = Turns(
        cell("here = open('f', 'w'); commit = vmSnapshot()"), cell("1 + 1"), cell("FINAL('done')")
    )
    settings = {"checkpoints": "off"}
    with pytest.raises((Interrupted, BaseExceptionGroup)):
        await lab.run("-> x", model, settings=settings, on_event=stop_when(events.ModelReplied, 2))
    (run_id,) = lab.journal_ids()
    assert (await lab.resume(run_id, model, settings=settings)).outputs == {"x": "done"}
    first, second = (message.content for message in model.asked[-1][3::2])
    assert "will not have these variables: here" in first
    assert "will not have" not in second


async def cut_off_in_branches(lab: Lab) -> tuple[Family, str]:
    """A run that ends when its two branches have three replies, and its model."""
    model = Family(
        *branching("['like a.', 'like b.']", "FINAL([r.outputs['n'] for r in results])"),
        a=[cell("1 + 1"), cell("FINAL(1)")],
        b=[cell("2 + 2"), cell("FINAL(2)")],
    )
    seen: list[str] = []

    def look(event: rlm.Event) -> None:
        if isinstance(event, events.InChild) and isinstance(event.event, events.ModelReplied):
            seen.append(event.child)
            if len(seen) == 3:
                raise Interrupted

    with pytest.raises((Interrupted, BaseExceptionGroup)):
        await lab.run("-> n: any", model, on_event=look)
    (run_id,) = lab.journal_ids()
    return model, run_id


async def test_branches_that_a_crash_cut_off_are_made_again_and_only_the_rest_is_paid(lab: Lab):
    model, run_id = await cut_off_in_branches(lab)
    result = await lab.resume(run_id, model)
    assert result.outputs == {"n": [1, 2]}
    paid = [line for line in lab.journal(run_id) if line["event"] == "model_replied"]
    live = [line for line in paid if not line["recorded"]]
    assert len(live) == 6, "two of the run's own, two of each branch"
    # What one was asked when the process ended had not come back.
    assert len(model.asked) in (6, 7)


@pytest.mark.parametrize("policy", ["step", "off"])
async def test_what_is_paid_is_counted_once_and_leaves_branches_the_share_that_they_had(
    lab: Lab, policy: str
):
    model = Family(
        *branching("['like a.', 'like b.']", "FINAL([r.error or r.outputs['n'] for r in results])"),
        a=[cell("1"), cell("2"), cell("FINAL(1)")],
        b=[cell("1"), cell("2"), cell("FINAL(2)")],
    )
    replied: list[rlm.Event] = []

    def look(event: rlm.Event) -> None:
        if isinstance(event, events.InChild) and isinstance(event.event, events.ModelReplied):
            replied.append(event)
            if len(replied) in (3, 5):
                raise Interrupted

    settings = {"checkpoints": policy}
    with pytest.raises((Interrupted, BaseExceptionGroup)):
        await lab.run("-> n: any", model, settings=settings, on_event=look, max_tokens=90)
    (run_id,) = lab.journal_ids()
    with pytest.raises((Interrupted, BaseExceptionGroup)):
        await lab.resume(run_id, model, settings=settings, on_event=look)
    result = await lab.resume(run_id, model, settings=settings)
    assert result.outputs == {"n": [1, 2]}
    live = [each for each in lab.journal(run_id) if each.get("recorded") is False]
    assert result.usage.tokens == 11 * len(live) == 11 * 8


async def test_a_run_that_has_ended_resumes_only_from_a_named_step(lab: Lab):
    result = await lab.run(SIGNATURE, Turns(*COUNTING), settings=EACH_STEP)
    with pytest.raises(UsageError, match="Name the step to go on from, one of: 0, 1, 2, 3, 4"):
        await lab.resume(result.run_id, Turns())
    other = Turns(*COUNTING[:2], cell("FINAL(n, ['other'])"))
    other.name = "turns:other"
    again = await lab.resume(result.run_id, other, step=2, settings=EACH_STEP)
    assert again.outputs == {"n": 2, "lines": ["other"]}
    assert len(other.asked) == 1
    assert summaries(Journals(lab.settings.state_dir))[0].steps == 3


async def test_what_cannot_be_resumed_is_said(lab: Lab):
    with pytest.raises(UnknownHandle, match="no run at all yet"):
        await lab.resume("run-0", Turns())
    result = await lab.run("-> x", Turns(cell("FINAL('1')")), settings=EACH_STEP)
    with pytest.raises(UnknownHandle, match=result.run_id):
        await lab.resume("../../etc", Turns())
    with pytest.raises(UsageError, match=r"no checkpoint at step 7, only at: 0, 1\."):
        await lab.resume(result.run_id, Turns(), step=7)
    for commit in await lab.fleet.commits():
        await lab.fleet.delete_commit(commit.id)
    with pytest.raises(UsageError, match="The checkpoint at step 0 has been deleted"):
        await lab.resume(result.run_id, Turns(), step=0)
    assert await lab.machines() == []


@pytest.mark.parametrize("step", [None, 0, 2])
async def test_a_run_whose_checkpoints_are_gone_is_not_resumed_and_keeps_its_result(
    lab: Lab, step: int | None
):
    result = await lab.run(SIGNATURE, Turns(*COUNTING), settings=EACH_STEP)
    before = lab.journal(result)
    for commit in await lab.fleet.commits():
        await lab.fleet.delete_commit(commit.id)
    model = Turns()
    with pytest.raises(UsageError, match=r"its outputs stay on record|its record stays"):
        await lab.resume(result.run_id, model, step=step)
    assert lab.journal(result) == before
    record = load_record(Journals(lab.settings.state_dir).of(result.run_id))
    assert record.result
    assert record.result.outputs == COUNTED
    assert (model.asked, await lab.machines()) == ([], [])


async def test_only_checkpoints_that_exist_are_offered_and_taken(lab: Lab):
    model = Turns(*COUNTING)
    run_id = await broken_off(lab, model, stop_when(events.ModelReplied, 4))
    for gone in lab.happened(events.CheckpointMade)[2:]:
        await lab.fleet.delete_commit(gone.commit_id)
    journal = Journals(lab.settings.state_dir).of(run_id)
    assert summary(journal, await existing_checkpoints(lab.fleet)).checkpoints == (0, 1)
    with pytest.raises(UsageError, match=r"at step 2 has been deleted.* are left: 0, 1\."):
        await lab.resume(run_id, model, step=2)
    assert (await lab.resume(run_id, model, settings=EACH_STEP)).outputs == COUNTED
    assert lab.happened(events.RunResumed)[-1].step == 1
    assert len(model.asked) == len(COUNTING)


async def test_a_run_without_outputs_starts_again_when_its_checkpoints_are_gone(lab: Lab):
    model = Turns(*COUNTING)
    run_id = await broken_off(lab, model, stop_when(events.ModelReplied, 4))
    for commit in await lab.fleet.commits():
        await lab.fleet.delete_commit(commit.id)
    run = summary(
        Journals(lab.settings.state_dir).of(run_id), await existing_checkpoints(lab.fleet)
    )
    assert "starts it again" in next_step_hint(run)
    assert (await lab.resume(run_id, model, settings=EACH_STEP)).outputs == COUNTED
    assert len(model.asked) == len(COUNTING)


@pytest.mark.parametrize("how", ["model fails", "machine", "killed", "model is unavailable"])
async def test_outputs_outlive_an_attempt_to_resume_that_has_none(lab: Lab, how: str):
    result = await lab.run(SIGNATURE, Turns(*COUNTING), settings=EACH_STEP)
    error = ModelUnavailable("no key") if how == "model is unavailable" else ModelFailed("no")
    other = Turns("", "", error, "")
    other.name = "turns:other"
    stop = stop_when(events.ModelAsked, 3 if how == "killed" else -1)
    if how == "machine":
        lab.fleet.backend.restore = _raise_machine_error  # pyright: ignore
    with suppress(Interrupted, BaseExceptionGroup, ModelUnavailable, MachineError):
        await lab.resume(result.run_id, other, step=2, on_event=stop)
    (run,) = summaries(Journals(lab.settings.state_dir))
    assert (run.state, run.steps) == ("finished", 4)
    record = load_record(Journals(lab.settings.state_dir).of(result.run_id))
    assert record.result
    assert record.result.outputs == COUNTED
    assert [step.number for step in record.steps] == [1, 2, 3, 4]
    if how != "machine":
        assert "An attempt to resume the run" in record.result.warnings[-1]


async def _raise_machine_error(*_: object, **__: object) -> None:
    raise MachineError("no machine today")


async def test_two_cannot_resume_the_same_run(lab: Lab):
    model = Turns(cell("FINAL(1)"), ModelFailed("no"))
    refused = list[str]()

    async def slow(_: object) -> Completion:
        with pytest.raises(UsageError) as error:
            await lab.resume(lab.journal_ids()[0], model)
        refused.append(str(error.value))
        return Completion(cell("FINAL('1')"), Usage())

    await lab.run("-> x", Speaker(slow))
    assert "is under way in another process" in refused[0]


async def test_a_journal_that_was_cut_in_mid_line_can_be_resumed(lab: Lab):
    model = Turns(*COUNTING)
    run_id = await broken_off(lab, model, stop_when(events.CellFinished, 3))
    journal = lab.settings.state_dir / "runs" / run_id / "events.jsonl"
    journal.write_bytes(journal.read_bytes()[:-30])
    assert (await lab.resume(run_id, model, settings=EACH_STEP)).outputs == COUNTED
    assert len(model.asked) == len(COUNTING)


async def test_a_run_whose_recorded_task_is_not_that_of_its_checkpoint_is_not_resumed(lab: Lab):
    run_id = await broken_off(lab, Turns(*COUNTING), stop_when(events.ModelReplied, 3))
    journal = lab.settings.state_dir / "runs" / run_id / "events.jsonl"
    journal.write_text(journal.read_text().replace('"max_iterations": 20', '"max_iterations": 21'))
    with pytest.raises(UsageError, match="recorded by another version"):
        await lab.resume(run_id, Turns(*COUNTING))
    result = await lab.resume(run_id, Turns(*COUNTING), changes=Changes(max_iterations=5))
    assert result.outputs == COUNTED


async def test_what_a_version_with_other_prompts_has_paid_for_is_not_asked_again(lab: Lab):
    model, run_id = await cut_off_in_branches(lab)
    worded_otherwise(lab, run_id)
    assert (await lab.resume(run_id, model)).outputs == {"n": [1, 2]}
    live = [
        line
        for line in lab.journal(run_id)
        if line["event"] == "model_replied" and not line["recorded"]
    ]
    assert len(live) == 6, "two of the run's own, two of each branch"


def worded_otherwise(lab: Lab, run_id: str) -> None:
    """Make the journal one of a version without marks, whose prompts were worded differently."""
    journal = lab.settings.state_dir / "runs" / run_id / "events.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    for line in lines:
        line.pop("exchange", None)
        line.get("task", {}).pop("mark", None)
        for name in ("request", "fingerprint"):
            if line.get(name):
                line[name] = "0" * 64
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))


async def test_a_replay_asks_no_model_and_finds_the_world_the_same(real: Lab):
    result = await real.run(
        "text, numbers: list[int] -> n: int, s",
        Turns(
            cell("n = len(text) + sum(numbers); s = llmQuery('?'); writeFile('n', str(n))"),
            cell("FINAL(int(readFile('n')), s)"),
        ),
        sub_model=Turns("Said."),
        inputs={"text": "abc", "numbers": [1, 2]},
    )
    replayed = await real.replay(result.run_id)
    assert replayed.differences == []
    assert replayed.same_outputs
    assert replayed.result.outputs == result.outputs == {"n": 6, "s": "Said."}
    assert replayed.result.usage.tokens == 0
    assert replayed.result.run_id != result.run_id
    assert await real.machines() == []


async def test_a_replay_says_at_which_step_the_world_answered_differently(lab: Lab):
    result = await lab.run(
        "-> x", Turns(cell("print('same')"), cell("print(currentVmId())"), cell("FINAL('2')"))
    )
    replayed = await lab.replay(result.run_id)
    assert [each.step for each in replayed.differences] == [2]
    for outcome in (result, replayed.result):
        assert f"'{outcome.machine_id}" in replayed.differences[0].what
    assert replayed.same_outputs


async def test_a_replay_can_continue_live_with_another_model(lab: Lab):
    result = await lab.run(SIGNATURE, Turns(*COUNTING))
    other = Turns("", "", cell("FINAL(n * 100, ['live'])"))
    replayed = await lab.replay(result.run_id, live_from=2, models=(other, other))
    assert replayed.result.outputs == {"n": 200, "lines": ["live"]}
    assert len(other.asked) == 1
    assert not replayed.same_outputs


async def test_the_tree_of_a_run_tells_who_came_from_whom_and_who_won(lab: Lab):
    model = Family(
        *branching(
            "['like a.', 'like b.'], outputs='n: int', score='n'",
            "commit = vmSnapshot()",
            "id = vmRestore(commit)",
            "FINAL(1)",
        ),
        a=[cell("FINAL(1)")],
        b=[cell("FINAL(2)")],
    )
    result = await lab.run("-> n: any", model, settings={"checkpoints": "off"})
    about, nodes = run_lineage(Journals(lab.settings.state_dir).of(result.run_id))
    assert about.startswith(f"{result.run_id}: -> n: any [finished after 4 steps, 66 tokens")
    lines = list(render_lineage(nodes))
    assert [line.count("│") + line.count("   ") for line in lines] == [0, 1, 1, 2, 3]
    root, a, b, commit, restored = lines
    assert "created at step 0, deleted" in root
    assert "branched at step 1, deleted); branch 1: like a.; finished in 1 steps, 11 tokens" in a
    assert b.endswith("score 2; it won")
    assert "vmSnapshot at step 2" in commit
    assert "restored at step 3" in restored
    assert list(render_lineage(nodes, limit=2))[2:] == ["… and 3 more"]


async def test_a_cell_that_fails_again_after_a_resume_has_the_number_that_it_had(lab: Lab):
    turns = [cell(code) for code in ("x = 1", "y = 2", "1 / 0", "FINAL(x)")]
    result = await lab.run("-> x: int", Turns(*turns), settings={"checkpoints": "step"})
    model = Turns()
    again = await lab.resume(result.run_id, model, step=1)
    assert again.outputs == {"x": 1}
    assert lab.happened(events.Diverged) == []
    assert model.asked == []
