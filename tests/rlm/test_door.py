"""The public names of the room."""

from __future__ import annotations

from inline_snapshot import snapshot

from vers_rlm_mcp import rlm


def test_the_door_shows_these_names_and_no_others() -> None:
    assert sorted(rlm.__all__) == snapshot(
        [
            "Branch",
            "CallModel",
            "CheckFiles",
            "Checked",
            "Emit",
            "Event",
            "Feedback",
            "Field",
            "InputFile",
            "InputVariable",
            "MAX_ITERATIONS",
            "MAX_SUB_CALLS",
            "MachineFacts",
            "ModelFailure",
            "OUTPUT_CHARS",
            "Outcome",
            "PREVIEW_CHARS",
            "Reply",
            "Request",
            "Run",
            "RunCell",
            "Signature",
            "Step",
            "StepFinished",
            "Stop",
            "Task",
            "Verdict",
            "Verify",
            "describe",
            "fingerprint",
            "plain_prompt",
            "preview",
            "read_outputs",
            "run",
            "system_prompt",
            "task_prompt",
            "truncate",
        ]
    )
