"""Renders events as lines for a person who watches a run."""

from __future__ import annotations

from functools import singledispatch

from vers_rlm_mcp.folding import fold

from .events import (
    CheckpointMade,
    ChildChosen,
    ChildFinished,
    ChildStarted,
    CommitMade,
    Diverged,
    Event,
    Feedback,
    FilesMerged,
    InChild,
    MachineDeleted,
    MachineMade,
    MachineRecovered,
    MachineSwitched,
    ModelAsked,
    RunFinished,
    RunReplayed,
    RunResumed,
    RunStarted,
    StepFinished,
    SubCallFinished,
    SubCallStarted,
    Verified,
)

_CODE_CHARS = 300
_OUTPUT_CHARS = 500
_REASONING_CHARS = 500
_CALL_CHARS = 120
_ID_CHARS = 8

_ENDINGS = {"finished": "✅", "extracted": "⚠️", "partial": "⚠️"}


@singledispatch
def narrate(event: Event) -> str | None:
    """The line that shows an event; None if the event is of no interest to a person."""
    del event
    return None


@narrate.register
def _(event: RunStarted) -> str:
    return f"🧠 Run {event.run_id} starts: {event.signature}"


@narrate.register
def _(event: RunResumed) -> str:
    return f"🧠 Run {event.run_id} goes on after step {event.step}"


@narrate.register
def _(event: RunReplayed) -> str:
    return f"📼 Replaying {event.origin}"


@narrate.register
def _(event: Diverged) -> str:
    return f"≠ Step {event.step} came out otherwise: {cut(event.what, _OUTPUT_CHARS)}"


@narrate.register
def _(event: MachineRecovered) -> str:
    return (
        f"🩹 The machine is put back to the end of step {event.checkpoint} → {event.machine_id}: "
        f"{event.why}"
    )


@narrate.register
def _(event: ModelAsked) -> str | None:
    return "🧾 Asking for the outputs" if event.purpose == "extraction" else None


@narrate.register
def _(event: StepFinished) -> str:
    lines = [
        f"{'✓' if event.done else '⟳'} Step {event.step}/{event.max_steps}",
        f"   💭 {cut(event.reasoning, _REASONING_CHARS)}" if event.reasoning else "",
        f"   📝 {cut(event.code, _CODE_CHARS)}" if event.code else "",
        f"   📤 {cut(fold(event.output), _OUTPUT_CHARS)}" if event.output else "",
        # The end of a traceback says what went wrong.
        f"   ❌ {fold(event.error).rstrip()[-_CODE_CHARS:]}" if event.error else "",
    ]
    return "\n".join(line for line in lines if line)


@narrate.register
def _(event: Feedback) -> str:
    return f"↩️ {cut(event.text, _OUTPUT_CHARS)}"


@narrate.register
def _(event: SubCallStarted) -> str:
    return f"💬 llmQuery {event.number}: {cut(event.prompt, _CALL_CHARS)}"


@narrate.register
def _(event: SubCallFinished) -> str | None:
    return f"⚠️ llmQuery {event.number} failed: {event.error}" if event.error else None


@narrate.register
def _(event: ChildStarted) -> str:
    what = "Branch" if event.origin == "branch" else "Query"
    return f"🌱 {what} {event.child} starts: {cut(event.about, _CALL_CHARS)}"


@narrate.register
def _(event: ChildFinished) -> str:
    sign = _ENDINGS.get(event.status, "⚠️")
    score = "" if event.score is None else f", score {event.score:g}"
    return f"{sign} {event.child} {event.status} in {event.seconds:.1f} s{score}: {event.reason}"


@narrate.register
def _(event: ChildChosen) -> str:
    return f"🏆 Branch {event.child} won; its machine is the current one: {event.machine_id}"


@narrate.register
def _(event: FilesMerged) -> str:
    files = f"{len(event.paths)} file{'' if len(event.paths) == 1 else 's'}"
    return f"📥 {files} of {event.child} brought back: {cut(', '.join(event.paths), _CALL_CHARS)}"


@narrate.register
def _(event: InChild) -> str | None:
    line = narrate(event.event)
    return line and f"[{event.child}] {line}"


@narrate.register
def _(event: Verified) -> str:
    return f"{'✅' if event.accepted else '❌'} Check: {cut(event.command, _CALL_CHARS)}"


@narrate.register
def _(event: MachineMade) -> str:
    if event.origin == "branched":
        return f"🔀 vmBranch: created branch → {event.machine_id}"
    if event.origin == "restored":
        return f"⏪ vmRestore: restored → {event.machine_id}"
    if event.origin == "attached":
        return f"🚀 Using machine: {event.machine_id}"
    return f"🚀 Machine created: {event.machine_id}"


@narrate.register
def _(event: MachineSwitched) -> str:
    return f"🔄 vmSwitch: {event.previous[:_ID_CHARS]}… → {event.current[:_ID_CHARS]}…"


@narrate.register
def _(event: CommitMade) -> str:
    return f"📸 vmSnapshot: committed → {event.commit_id}"


@narrate.register
def _(event: CheckpointMade) -> str | None:
    return f"⚠️ {event.too_large}" if event.too_large else None


@narrate.register
def _(event: MachineDeleted) -> str:
    if event.error:
        return f"⚠️ Failed to delete machine {event.machine_id}: {event.error}"
    return f"🗑️ Deleted machine: {event.machine_id}"


@narrate.register
def _(event: RunFinished) -> str:
    sign = _ENDINGS.get(event.status, "⚠️")
    plural = "" if event.steps == 1 else "s"
    return f"{sign} Run {event.status} after {event.steps} step{plural}: {event.reason}"


def cut(text: str, limit: int) -> str:
    """`text`, or its beginning and an ellipsis."""
    return text if len(text) <= limit else f"{text[:limit]}…"
