"""Events: as JSON for the journal, as lines for a person."""

from __future__ import annotations

import json

import pytest
from inline_snapshot import snapshot

from vers_rlm_mcp import rlm
from vers_rlm_mcp.rlm import (
    CellOutput,
    CommitMade,
    Event,
    Feedback,
    MachineDeleted,
    MachineMade,
    MachineSwitched,
    ModelAsked,
    RunFinished,
    RunStarted,
    StepFinished,
    SubCallFinished,
    SubCallStarted,
    ToolCalled,
    narrate,
)
from vers_rlm_mcp.values import Usage


def step(*, done: bool = False, error: str | None = None) -> StepFinished:
    return StepFinished(3, 20, "I look.", "c" * 400, "o" * 600, error, 0.5, Usage(1, 2), done)


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
    shown = [getattr(rlm, name) for name in rlm.__all__]
    events = [each for each in shown if isinstance(each, type) and issubclass(each, Event)]
    assert len({each.kind() for each in events}) == len(events) == 28


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
        (ToolCalled(1, "exec", "x" * 130), f"🖥️ exec: {'x' * 120}…"),
        (ToolCalled(1, "readFile", "/a b"), "📄 readFile: /a b"),
        (ToolCalled(1, "writeFile", "/a"), "✏️ writeFile: /a"),
        (SubCallStarted(1, 2, "Why?"), "💬 llmQuery 2: Why?"),
        (SubCallFinished(1, 2, "", Usage(), 1.0, "no key"), "⚠️ llmQuery 2 failed: no key"),
        (SubCallFinished(1, 2, "Because.", Usage(), 1.0), None),
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
        (RunStarted("r1", "a -> b", "m1", "m", "s", 20), "🧠 Run r1 starts: a -> b"),
        (
            RunFinished("r1", "finished", {}, "The model called FINAL.", 1, Usage(), 2.0),
            "✅ Run finished after 1 step: The model called FINAL.",
        ),
        (
            RunFinished("r1", "partial", {}, "No money.", 2, Usage(), 2.0),
            "⚠️ Run partial after 2 steps: No money.",
        ),
    ],
)
def test_what_happens_is_told_in_a_line(event: Event, line: str | None) -> None:
    assert narrate(event) == line


def test_the_door_shows_these_names_and_no_others() -> None:
    assert sorted(rlm.__all__) == snapshot(
        [
            "Branch",
            "Budget",
            "CallModel",
            "CellFinished",
            "CellOutput",
            "CellStarted",
            "Checked",
            "CheckpointMade",
            "ChildChosen",
            "ChildFinished",
            "ChildStarted",
            "CommitMade",
            "Diverged",
            "Emit",
            "Event",
            "Feedback",
            "Field",
            "FilesMerged",
            "InChild",
            "InputFile",
            "InputVariable",
            "Limits",
            "MAX_ITERATIONS",
            "MAX_SUB_CALLS",
            "MachineDeleted",
            "MachineFacts",
            "MachineMade",
            "MachineRecovered",
            "MachineSwitched",
            "ModelAsked",
            "ModelFailure",
            "ModelReplied",
            "OUTPUT_CHARS",
            "Outcome",
            "PREVIEW_CHARS",
            "Reply",
            "Request",
            "Run",
            "RunCell",
            "RunFinished",
            "RunReplayed",
            "RunResumed",
            "RunStarted",
            "Signature",
            "Step",
            "StepFinished",
            "Stop",
            "SubCallFinished",
            "SubCallStarted",
            "Task",
            "ToolCalled",
            "Verdict",
            "Verified",
            "Verify",
            "describe",
            "fingerprint",
            "narrate",
            "plain_prompt",
            "preview",
            "read_outputs",
            "run",
            "system_prompt",
            "task_prompt",
            "truncate",
        ]
    )
