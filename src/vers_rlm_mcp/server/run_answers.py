# ruff: noqa: PLC0415 - the rooms below are imported by the first call
"""Answers about runs: their outputs, or how far they are."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypedDict
from urllib.parse import quote

from anyio import to_thread
from mcp_types import ResourceLink

from vers_rlm_mcp.folding import fold

from .bounds import dump, largest, shorten
from .known_clients import KnownClient, client_of
from .toolset import Answer, without_none

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mcp.server.mcpserver import Context
    from pydantic import JsonValue

    from vers_rlm_mcp.rlm import Step
    from vers_rlm_mcp.runs import RunResult

    from .application import Application

REASONING_CHARS = 300
CODE_CHARS = 600
OUTPUT_CHARS = 600
"""Characters of each part of a step in an answer."""

REASON_CHARS = 300
"""Characters of the reason for which a run ended, in a list."""

PAGE_STEPS = 20
"""Steps in one answer; longer runs are read page by page."""

SHOWN_FILES = 10
"""Files of a run in an answer: some 200 characters each, in the text and in the fields."""

BRIEF_CHARS = 2_000
"""Characters of the last steps in an answer to a call that did not ask for steps: enough to see how
it went. The trajectory of a whole run is many times its outputs."""

FRAME_CHARS = 2_500
"""Characters of an answer besides its outputs and steps."""

ASKED = 10_000
"""A cursor contains the steps that its reader has seen and, times this, how often it has asked:
some clients end a conversation in which the same call is repeated."""

ROOM = KnownClient().room // 2 - FRAME_CHARS

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
    files: list[dict[str, Any]]
    """The files that it handed over: `name`, `size` in bytes, and `uri` to read each."""
    verified_by: str | None
    """The command that accepted the outputs."""
    machine: dict[str, Any] | None
    usage: dict[str, Any] | None
    """Sub-calls included; without `usd` if that is not known."""
    trajectory: list[dict[str, str]]
    next_cursor: int | None
    """The cursor for further steps, if there are more."""
    warnings: list[str]


def room_of(context: Context[Any, Any]) -> int:
    """The characters that outputs and steps may have together, in the text and in the fields."""
    return client_of(context).room // 2 - FRAME_CHARS


async def describe_run(
    app: Application, run_id: str, cursor: int | None = None, *, room: int = ROOM
) -> Answer[RunFields]:
    """The answer about a run: its result, and the steps after the cursor.

    Without a cursor, the last steps, briefly.

    Raises:
        UnknownHandle: There is no such run.
    """
    from vers_rlm_mcp.runs import COMPLETE, existing_checkpoints, load_record, next_step_hint

    journal, live = await app.find_run(run_id)
    result = live.result if live and live.has_ended else None
    if result and result.status in COMPLETE:
        return result_answer(result, cursor=cursor, room=room)
    existing = await existing_checkpoints(await app.fleet())
    run = await to_thread.run_sync(load_record, journal, existing)
    if live and not live.has_ended:
        return running_answer(run_id, run.steps, cursor, room=room)
    next_step = next_step_hint(run.summary)
    # In memory it is complete even if the disk was full.
    if result := (live and live.result) or run.result:
        return result_answer(result, next_step, cursor, room=room)
    if run.summary.state == RUNNING:  # in another process
        return running_answer(run_id, run.steps, cursor, room=room)
    return broken_off_answer(run_id, run.summary.state, next_step, run.steps, cursor, room=room)


def result_answer(
    result: RunResult, next_step: str = "", cursor: int | None = None, *, room: int = ROOM
) -> Answer[RunFields]:
    """The answer about a run that has ended.

    Args:
        result: The run's result.
        next_step: How to resume it, if it has not ended with its outputs.
        cursor: Show the steps after this one; without it, the last ones, briefly.
        room: The characters of outputs and steps.
    """
    warnings = list(result.warnings)
    outputs = _fit_outputs(result, room if cursor is None else room // 2, warnings)
    left = room - len(dump(outputs))
    fields = _state(result.run_id, result.status, next_step, result.steps, cursor, left)
    fields["outputs"] = outputs
    fields["reason"] = result.reason
    uri = URI.format(result.run_id)
    fields["files"] = [
        {"name": each.name, "size": each.size, "uri": f"{uri}/files/{quote(each.name)}"}
        for each in result.files[:SHOWN_FILES]
    ]
    if len(result.files) > SHOWN_FILES:
        warnings.append(f"{uri} names all {len(result.files)} files.")
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
    run_id: str, steps: Sequence[Step], cursor: int | None = None, *, room: int = ROOM
) -> Answer[RunFields]:
    """The answer about a run under way, whose further steps the next cursor will show."""
    fields = _state(run_id, RUNNING, "", steps, cursor, room)
    asked = (cursor or 0) // ASKED + 1
    seen = len(steps) if fields["next_cursor"] is None else fields["next_cursor"]
    fields["next_cursor"] = asked * ASKED + seen
    fields["next"] = (
        f"It continues: rlmResult (runId {run_id}, cursor {fields['next_cursor']}) waits for it, "
        "rlmCancel ends it."
    )
    return _answer(fields, more=seen < len(steps))


def broken_off_answer(
    run_id: str,
    state: str,
    next_step: str,
    steps: Sequence[Step],
    cursor: int | None = None,
    *,
    room: int = ROOM,
) -> Answer[RunFields]:
    """The answer about a run whose process died before it ended."""
    return _answer(_state(run_id, state, next_step, steps, cursor, room))


def step_fields(step: Step) -> dict[str, str]:
    """A step, shortened."""
    output = "\n".join(fold(part) for part in (step.output, step.error) if part)
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
    run_id: str,
    status: str,
    next_step: str,
    steps: Sequence[Step],
    cursor: int | None,
    room: int,
) -> RunFields:
    """The fields that every answer has, with a page of the steps."""
    first, page = _page(steps, cursor, room)
    end = first + len(page)
    return {
        "run_id": run_id,
        "status": status,
        "next": next_step or None,
        "outputs": None,
        "steps": len(steps),
        "reason": None,
        "files": [],
        "verified_by": None,
        "machine": None,
        "usage": None,
        "trajectory": page,
        "next_cursor": end if end < len(steps) else None,
        "warnings": [],
    }


def _page(steps: Sequence[Step], cursor: int | None, room: int) -> tuple[int, list[dict[str, str]]]:
    """How many steps come before a page, and the page: after the cursor, else the last steps."""
    if cursor is None:
        page = _while_they_fit(reversed(steps[-PAGE_STEPS:]), min(room, BRIEF_CHARS))[::-1]
        return len(steps) - len(page), page
    first = min(cursor % ASKED, len(steps))
    following = steps[first : first + PAGE_STEPS]
    # At least one, so that every page leads on.
    return first, _while_they_fit(following, room) or [step_fields(it) for it in following[:1]]


def _while_they_fit(steps: Iterable[Step], room: int) -> list[dict[str, str]]:
    page: list[dict[str, str]] = []
    for step in steps:
        fields = step_fields(step)
        room -= len(dump(fields))
        if room < 0:
            break
        page.append(fields)
    return page


def _answer(fields: RunFields, *, more: bool | None = None) -> Answer[RunFields]:
    """The answer with these fields, and a text that says the same in Markdown.

    `more` tells whether there are more steps, if the cursor does not.
    """
    uri, run_id = URI.format(fields["run_id"]), fields["run_id"]
    lines = [
        _headline(fields),
        *([fields["next"]] if fields["next"] else []),
        *_facts(fields),
        *([f"Verified by `{fields['verified_by']}`"] if fields["verified_by"] else []),
        *(f"⚠️ {warning}" for warning in fields["warnings"]),
        *_outputs(fields),
        *_files(fields),
        *_trajectory(fields, fields["next_cursor"] is not None if more is None else more),
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
        about = "about " if used["estimated"] else ""
        lines.append(
            f"Usage: {about}{used['tokens']:,} tokens{money}, {used['seconds']:.1f} s, "
            f"{used['sub_calls']} sub-calls (run {fields['run_id']})"
        )
    return lines


def _outputs(fields: RunFields) -> list[str]:
    if fields["outputs"] is None:
        return []
    lines = [f"**{name}**: {as_text(value)}" for name, value in fields["outputs"].items()]
    return ["", "## Outputs", *(lines or ["(none)"])]


def _files(fields: RunFields) -> list[str]:
    lines = [f"{each['name']} ({each['size']:,} bytes): {each['uri']}" for each in fields["files"]]
    return ["", "## Files", *lines] if lines else []


def _trajectory(fields: RunFields, more: bool) -> list[str]:
    page, cursor = fields["trajectory"], fields["next_cursor"]
    last = cursor % ASKED if cursor is not None else fields["steps"]
    first = last - len(page) + 1
    lines = ["", "## Trajectory"] if page else []
    for number, step in enumerate(page, first):
        lines.append(f"=== Step {number} ===")
        if step["reasoning"]:
            lines.append(f"Reasoning: {step['reasoning']}")
        if step["code"]:
            lines += ["Code:", "```python", step["code"], "```"]
        lines += ["Output:", step["output"]]
    if more:
        lines.append(f"[there are more steps; continue with cursor {cursor}]")
    elif first > 1 and fields["status"] != RUNNING:
        lines.append(f"[{count(fields['steps'], 'step')}; rlmResult with cursor 0 shows them]")
    return lines


def _fit_outputs(result: RunResult, room: int, warnings: list[str]) -> dict[str, JsonValue]:
    """The outputs; of those that are too long together, the beginning and end of their texts."""
    uri = URI.format(result.run_id)
    texts = {name: as_text(value) for name, value in result.outputs.items()}

    def cut(limit: int) -> dict[str, JsonValue]:
        return {
            name: value if len(texts[name]) <= limit else shorten(texts[name], limit)
            for name, value in result.outputs.items()
        }

    def fits(outputs: dict[str, JsonValue]) -> bool:
        as_texts = sum(len(as_text(value)) for value in outputs.values())
        return max(len(dump(outputs)), as_texts) <= room

    outputs = largest(max(map(len, texts.values()), default=0), cut, fits)
    for name, value in result.outputs.items():
        if outputs[name] is not value:
            kind = "" if isinstance(value, str) else ", given as text here since it is too long"
            size = len(texts[name])
            warnings.append(
                f"{uri}/outputs/{quote(name)}, an output of {size:,} characters, was cut{kind}."
            )
    return outputs
