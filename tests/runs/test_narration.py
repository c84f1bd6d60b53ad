"""Events: as JSON for the journal, as lines for a person."""

from __future__ import annotations

import json

import pytest

from vers_rlm_mcp.rlm import Event, Feedback, StepFinished
from vers_rlm_mcp.runs import events, narrate
from vers_rlm_mcp.runs.events import (
    CellOutput,
    CommitMade,
    MachineDeleted,
    MachineMade,
    MachineSwitched,
    ModelAsked,
    RunFinished,
    RunStarted,
    SubCallFinished,
    SubCallStarted,
)
from vers_rlm_mcp.values import Usage


def step(*, done: bool = False, error: str | None = None) -> StepFinished:
    return StepFinished(
        step=3,
        max_steps=20,
        reasoning="I look.",
        code="c" * 400,
        output="o" * 600,
        error=error,
        seconds=0.5,
        usage=Usage(1, 2),
        done=done,
    )


def test_an_event_is_json_under_its_name() -> None:
    assert json.loads(json.dumps(step(done=True).to_json())) == {
        "event": "step_finished",
        "step": 3,
        "max_steps": 20,
        "reasoning": "I look.",
        "code": "c" * 400,
        "output": "o" * 600,
        "error": None,
        "seconds": 0.5,
        "usage": {
            "input_tokens": 1,
            "output_tokens": 2,
            "cache_read_tokens": 0,
            "cache_write_tokens": 0,
            "usd": 0.0,
        },
        "done": True,
    }


def test_every_kind_of_event_has_a_name_of_its_own() -> None:
    shown = vars(events).values()
    kinds = {each for each in shown if isinstance(each, type) and issubclass(each, Event)}
    assert len({each.kind() for each in kinds}) == len(kinds) == 28


def test_a_step_is_told_with_its_parts_cut_to_length() -> None:
    assert narrate(step()) == (
        f"⟳ Step 3/20\n   💭 I look.\n   📝 {'c' * 300}…\n   📤 {'o' * 500}…"
    )
    assert (narrate(step(done=True)) or "").startswith("✓ Step 3/20")


def test_of_an_error_the_end_is_told() -> None:
    assert (narrate(step(error="x" * 1_000 + "ValueError: no\n")) or "").endswith("ValueError: no")


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (SubCallStarted(1, 2, "y" * 130), f"💬 llmQuery 2: {'y' * 120}…"),
        (SubCallStarted(1, 2, "Why?"), "💬 llmQuery 2: Why?"),
        (
            SubCallFinished(step=1, number=2, text="", usage=Usage(), seconds=1.0, error="no key"),
            "⚠️ llmQuery 2 failed: no key",
        ),
        (SubCallFinished(step=1, number=2, text="Because.", usage=Usage(), seconds=1.0), None),
        (MachineMade("m1", "created"), "🚀 Machine created: m1"),
        (MachineMade("m1", "attached"), "🚀 Using machine: m1"),
        (MachineMade("m2", "branched", "m1"), "🔀 vmBranch: created branch → m2"),
        (MachineMade("m3", "restored", "c1"), "⏪ vmRestore: restored → m3"),
        (MachineSwitched("a" * 12, "b" * 12), "🔄 vmSwitch: aaaaaaaa… → bbbbbbbb…"),
        (CommitMade("c1", "m1", "disk"), "📸 vmSnapshot: committed → c1"),
        (MachineDeleted("m1"), "🗑️ Deleted machine: m1"),
        (MachineDeleted("m1", "busy"), "⚠️ Failed to delete machine m1: busy"),
        (ModelAsked(1, "step", 2), None),
        (ModelAsked(1, "extraction", 2), "🧾 Asking for the outputs"),
        (CellOutput(1, "x"), None),
        (Feedback(1, "No code."), "↩️ No code."),
        (
            RunStarted(
                run_id="r1",
                signature="a -> b",
                machine_id="m1",
                model="m",
                sub_model="s",
                max_steps=20,
            ),
            "🧠 Run r1 starts: a -> b",
        ),
        (
            RunFinished(
                run_id="r1",
                status="finished",
                outputs={},
                reason="The model called FINAL.",
                steps=1,
                usage=Usage(),
                seconds=2.0,
            ),
            "✅ Run finished after 1 step: The model called FINAL.",
        ),
        (
            RunFinished(
                run_id="r1",
                status="partial",
                outputs={},
                reason="No money.",
                steps=2,
                usage=Usage(),
                seconds=2.0,
            ),
            "⚠️ Run partial after 2 steps: No money.",
        ),
    ],
)
def test_what_happens_is_told_in_a_line(event: Event, line: str | None) -> None:
    assert narrate(event) == line
