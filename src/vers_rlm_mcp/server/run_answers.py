# ruff: noqa: PLC0415 - the rooms below are imported by the first call
"""Answers about runs: their outputs, or how far they are."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypedDict

from anyio import to_thread
from mcp_types import ResourceLink

from .toolset import Answer, shorten, without_none

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

    from vers_rlm_mcp.rlm import Step
    from vers_rlm_mcp.runs import RunResult

    from .application import Application

REASONING_CHARS = 300
CODE_CHARS = 600
OUTPUT_CHARS = 600
"""Characters of each part of a step in an answer, within what clients pass on (twenty steps are
some 8,000 tokens)."""

PAGE_STEPS = 20
"""Steps in one answer; longer runs are read page by page."""

OUTPUTS_CHARS = 60_000
"""Characters of one output, which keep an answer below the length at which clients truncate."""

RUNNING = "running"

URI = "rlm://runs/{}"
"""The resource from which a whole run can be read."""


class RunState(TypedDict):
    """The first fields of every answer about a run.

    Tools that answer like `vers_rlm` declare only this: one complete schema suffices.
    """

    run_id: str
    status: str
    next: str | None
    """What can be done now, if it has not ended with its outputs."""


class RunFields(RunState):
    """The outputs of a run and how it arrived at them, or how far it is."""

    outputs: dict[str, Any] | None
    steps: int
    reason: str | None
    verified_by: str | None
    """The command that accepted the outputs."""
    machine: dict[str, Any] | None
    usage: dict[str, Any] | None
    """Sub-calls included; without `usd` if that is not known."""
    trajectory: list[dict[str, str]]
    next_cursor: int | None
    """The cursor for further steps, if there are more."""
    warnings: list[str]


async def describe_run(
    app: Application, run_id: str, cursor: int | None = None
) -> Answer[RunFields]:
    """The answer about a run: the steps after the cursor, or the last ones, and its result.

    Raises:
        UnknownHandle: There is no such run.
    """
    from vers_rlm_mcp.runs import COMPLETE, existing_checkpoints, load_record, next_step_hint

    journal, live = await app.find_run(run_id)
    result = live.result if live and live.has_ended else None
    if result and result.status in COMPLETE:
        return result_answer(result, cursor=cursor)
    existing = existing_checkpoints(await app.fleet())
    run = await to_thread.run_sync(load_record, journal, existing)
    if live and not live.has_ended:
        return running_answer(run_id, run.steps, cursor)
    next_step = next_step_hint(run.summary)
    # In memory it is complete even if the disk was full.
    if result := (live and live.result) or run.result:
        return result_answer(result, next_step, cursor)
    if run.summary.state == RUNNING:  # in another process
        return running_answer(run_id, run.steps, cursor)
    return broken_off_answer(run_id, run.summary.state, next_step, run.steps, cursor)


def result_answer(
    result: RunResult, next_step: str = "", cursor: int | None = None
) -> Answer[RunFields]:
    """The answer about a run that has ended.

    Args:
        result: The run's result.
        next_step: How to resume it, if it has not ended with its outputs.
        cursor: Show the steps after this one; without it, the last ones.
    """
    warnings = list(result.warnings)
    uri = URI.format(result.run_id)
    outputs = {
        name: _bounded(f"{uri}/outputs/{name}", value, warnings)
        for name, value in result.outputs.items()
    }
    fields = _state(result.run_id, result.status, next_step, result.steps, cursor)
    fields["outputs"] = outputs
    fields["reason"] = result.reason
    fields["verified_by"] = result.verified
    if result.machine_id:
        fields["machine"] = {
            "id": result.machine_id,
            "backend": result.backend,
            "isolation": result.isolation,
            "fidelity": result.fidelity,
            "kept": result.kept,
        }
    fields["usage"] = without_none(
        {
            **asdict(result.usage),
            "tokens": result.usage.tokens,
            "seconds": round(result.seconds, 3),
            "sub_calls": result.sub_calls,
        }
    )
    fields["warnings"] = warnings
    return _answer(fields)


def running_answer(
    run_id: str, steps: Sequence[Step], cursor: int | None = None
) -> Answer[RunFields]:
    """The answer about a run under way, whose further steps the next cursor will show."""
    next_step = f"It goes on: rlmResult waits for it (runId {run_id}), rlmCancel ends it."
    fields = _state(run_id, RUNNING, next_step, steps, cursor)
    fields["next_cursor"] = fields["next_cursor"] or max(len(steps), cursor or 0)
    return _answer(fields)


def broken_off_answer(
    run_id: str, state: str, next_step: str, steps: Sequence[Step], cursor: int | None = None
) -> Answer[RunFields]:
    """The answer about a run whose process died before it ended."""
    return _answer(_state(run_id, state, next_step, steps, cursor))


def step_fields(step: Step) -> dict[str, str]:
    """A step, shortened."""
    output = "\n".join(part for part in (step.output, step.error) if part)
    return {
        "reasoning": shorten(step.reasoning, REASONING_CHARS),
        "code": shorten(step.code, CODE_CHARS),
        "output": shorten(output, OUTPUT_CHARS),
    }


def as_text(value: JsonValue) -> str:
    """An output as text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)


def count(number: int, noun: str) -> str:
    """A number of things."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _state(
    run_id: str, status: str, next_step: str, steps: Sequence[Step], cursor: int | None
) -> RunFields:
    """The fields that every answer has, with a page of the steps."""
    start = max(0, len(steps) - PAGE_STEPS) if cursor is None else max(0, cursor)
    page = steps[start : start + PAGE_STEPS]
    end = start + len(page)
    return {
        "run_id": run_id,
        "status": status,
        "next": next_step or None,
        "outputs": None,
        "steps": len(steps),
        "reason": None,
        "verified_by": None,
        "machine": None,
        "usage": None,
        "trajectory": [step_fields(step) for step in page],
        "next_cursor": end if end < len(steps) else None,
        "warnings": [],
    }


def _answer(fields: RunFields) -> Answer[RunFields]:
    """The answer with these fields, and a text that says the same in Markdown."""
    uri, run_id = URI.format(fields["run_id"]), fields["run_id"]
    lines = [
        _headline(fields),
        *([fields["next"]] if fields["next"] else []),
        *_facts(fields),
        *([f"Verified by `{fields['verified_by']}`"] if fields["verified_by"] else []),
        *(f"⚠️ {warning}" for warning in fields["warnings"]),
        *_outputs(fields),
        *_trajectory(fields),
    ]
    return Answer(
        fields, "\n".join(lines), [ResourceLink(uri=uri, name=run_id, title="The whole run")]
    )


def _headline(fields: RunFields) -> str:
    steps, reason = count(fields["steps"], "step"), fields["reason"]
    match fields["status"]:
        case "finished":
            return f"✅ Vers RLM completed in {steps}."
        case "extracted":
            return f"⚠️ Vers RLM ended after {steps}; its outputs are a guess. {reason}"
        case "partial":
            return f"⚠️ Vers RLM ended after {steps} with partial outputs. {reason}"
        case "running":
            return f"⏳ Run {fields['run_id']} is still running, {steps} done."
        case status:
            why = f" {reason}" if reason else ""
            return f"❌ Run {fields['run_id']} {status} after {steps}.{why}"


def _facts(fields: RunFields) -> list[str]:
    lines: list[str] = []
    if vm := fields["machine"]:
        lines.append(
            f"VM: {vm['id']} ({'kept alive' if vm['kept'] else 'deleted'}; {vm['backend']}, "
            f"isolation: {vm['isolation']}, fidelity: {vm['fidelity']})"
        )
    if used := fields["usage"]:
        money = f", ${used['usd']:.4f}" if "usd" in used else ""
        lines.append(
            f"Usage: {used['tokens']:,} tokens{money}, {used['seconds']:.1f} s, "
            f"{used['sub_calls']} sub-calls (run {fields['run_id']})"
        )
    return lines


def _outputs(fields: RunFields) -> list[str]:
    if fields["outputs"] is None:
        return []
    lines = [f"**{name}**: {as_text(value)}" for name, value in fields["outputs"].items()]
    return ["", "## Outputs", *(lines or ["(none)"])]


def _trajectory(fields: RunFields) -> list[str]:
    last = fields["steps"] if fields["next_cursor"] is None else fields["next_cursor"]
    first = last - len(fields["trajectory"]) + 1
    lines = ["", "## Trajectory"]
    for number, step in enumerate(fields["trajectory"], first):
        lines.append(f"=== Step {number} ===")
        if step["reasoning"]:
            lines.append(f"Reasoning: {step['reasoning']}")
        if step["code"]:
            lines += ["Code:", "```python", step["code"], "```"]
        lines += ["Output:", step["output"]]
    if fields["next_cursor"] is not None:
        lines.append(f"[there are more steps; go on with cursor {fields['next_cursor']}]")
    return lines


def _bounded(uri: str, value: JsonValue, warnings: list[str]) -> JsonValue:
    """An output, or the beginning and end of its text if it is too long for an answer."""
    text = as_text(value)
    if len(text) <= OUTPUTS_CHARS:
        return value
    kind = "" if isinstance(value, str) else ", given as text here since it is too long"
    warnings.append(f"{uri}, an output of {len(text):,} characters, was cut{kind}.")
    return shorten(text, OUTPUTS_CHARS)
