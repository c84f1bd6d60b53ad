"""What the tools answer about runs: their outputs, or how far they have come."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mcp_types import ResourceLink
from pydantic import BaseModel, JsonValue

from .machine_answers import cut
from .toolset import Answer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vers_rlm_mcp.rlm import Step
    from vers_rlm_mcp.runs import RunRecord, RunResult, RunSummary

REASONING_CHARS = 300
CODE_CHARS = 600
OUTPUT_CHARS = 600
"""Characters of each part of a step in the trajectory's preview: what the seed of this tool showed,
within what clients pass on (twenty steps are some 8,000 tokens)."""

PREVIEW_STEPS = 20
"""Steps in one answer; a run that needs more is read page by page."""

OUTPUTS_CHARS = 60_000
"""Characters of one output: with it an answer stays below what clients cut at."""

SIGNATURE_CHARS = 120
"""Characters of a run's signature in a list."""

RUNNING = "running"

URI = "rlm://runs/{}"
"""Where the whole of a run can be read."""


class RunMachine(BaseModel):
    """The machine of a run."""

    id: str
    backend: str
    isolation: str
    fidelity: str
    kept: bool


class RunUsage(BaseModel):
    """What a run used, sub-calls included; `usd` is left out when it is not known."""

    tokens: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    usd: float | None = None
    seconds: float
    sub_calls: int


class RunStep(BaseModel):
    """A step, cut to length."""

    reasoning: str
    code: str
    output: str


class RunState(Answer):
    """What an answer about a run begins with.

    It is the schema of the tools that answer as another one does: one is enough for a model.
    """

    run_id: str
    status: str
    next: str | None = None
    """What can be done now, where it has not got to its end."""


class RunAnswer(RunState):
    """The outputs of a run and how it came to them, or how far it is."""

    outputs: dict[str, Any] | None = None
    steps: int
    reason: str | None = None
    verified_by: str | None = None
    """The command that accepted the outputs."""
    machine: RunMachine | None = None
    usage: RunUsage | None = None
    trajectory: list[RunStep]
    next_cursor: int | None = None
    """Where the steps go on, if there are more."""
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, result: RunResult, way_on: str = "", cursor: int | None = None) -> RunAnswer:
        """Of what came of a run, cut to length.

        Args:
            result: What came of it.
            way_on: How to go on with it.
            cursor: Show the steps after this one; without it, the last ones.
        """
        warnings = list(result.warnings)
        uri = URI.format(result.run_id)
        outputs = {
            name: _bounded(f"{uri}/outputs/{name}", value, warnings)
            for name, value in result.outputs.items()
        }
        return cls(
            run_id=result.run_id,
            status=result.status,
            next=way_on or None,
            outputs=outputs,
            steps=len(result.steps),
            reason=result.reason,
            verified_by=result.verified,
            machine=_machine(result),
            usage=_usage(result),
            warnings=tuple(warnings),
            **_page(result.steps, cursor),
        )

    @classmethod
    def running(cls, run: RunRecord, cursor: int | None = None) -> RunAnswer:
        """Of a run that goes on."""
        run_id, steps = run.summary.id, len(run.steps)
        page = _page(run.steps, cursor)
        page["next_cursor"] = page["next_cursor"] or max(steps, cursor or 0)
        way_on = f"It goes on: rlmResult waits for it (runId {run_id}), rlmCancel ends it."
        return cls(run_id=run_id, status=RUNNING, next=way_on, steps=steps, **page)

    @classmethod
    def unfinished(cls, run: RunRecord, way_on: str, cursor: int | None = None) -> RunAnswer:
        """Of a run that has no end."""
        if run.summary.state == RUNNING:  # in another process
            return cls.running(run, cursor)
        return cls(
            run_id=run.summary.id,
            status=run.summary.state,
            next=way_on,
            steps=len(run.steps),
            **_page(run.steps, cursor),
        )

    def links(self) -> list[ResourceLink]:
        """Where the run can be read in full."""
        uri = URI.format(self.run_id)
        return [ResourceLink(uri=uri, name=self.run_id, title="The whole run")]

    def text(self) -> str:
        """Markdown: how it ended, the outputs, the trajectory."""
        return "\n".join([*self._heading(), *self._outputs(), *self._trajectory()])

    def _heading(self) -> list[str]:
        return [
            self._headline(),
            *([self.next] if self.next else []),
            *self._facts(),
            *([f"Verified by `{self.verified_by}`"] if self.verified_by else []),
            *(f"⚠️ {warning}" for warning in self.warnings),
        ]

    def _headline(self) -> str:
        steps = f"{self.steps} step" + ("" if self.steps == 1 else "s")
        match self.status:
            case "finished":
                return f"✅ Vers RLM completed in {steps}."
            case "extracted":
                return f"✅ Vers RLM completed in {steps}; outputs extracted. {self.reason}"
            case "partial":
                return f"⚠️ Vers RLM ended after {steps} with partial outputs. {self.reason}"
            case "running":
                return f"⏳ Run {self.run_id} is still running, {steps} done."
            case _:
                why = f" {self.reason}" if self.reason else ""
                return f"❌ Run {self.run_id} {self.status} after {steps}.{why}"

    def _facts(self) -> list[str]:
        lines: list[str] = []
        if vm := self.machine:
            lines.append(
                f"VM: {vm.id} ({'kept alive' if vm.kept else 'deleted'}; {vm.backend}, isolation: "
                f"{vm.isolation}, fidelity: {vm.fidelity})"
            )
        if used := self.usage:
            money = "" if used.usd is None else f", ${used.usd:.4f}"
            lines.append(
                f"Usage: {used.tokens:,} tokens{money}, {used.seconds:.1f} s, {used.sub_calls} "
                f"sub-calls (run {self.run_id})"
            )
        return lines

    def _outputs(self) -> list[str]:
        if self.outputs is None:
            return []
        lines = [f"**{name}**: {shown(value)}" for name, value in self.outputs.items()]
        return ["", "## Outputs", *(lines or ["(none)"])]

    def _trajectory(self) -> list[str]:
        last = self.steps if self.next_cursor is None else self.next_cursor
        first = last - len(self.trajectory) + 1
        lines = ["", "## Trajectory"]
        for number, step in enumerate(self.trajectory, first):
            lines += [
                f"=== Step {number} ===",
                *([f"Reasoning: {step.reasoning}"] if step.reasoning else []),
            ]
            lines += ["Code:", "```python", step.code, "```"] if step.code else []
            lines += ["Output:", step.output]
        if self.next_cursor is not None:
            lines.append(f"[there are more steps; go on with cursor {self.next_cursor}]")
        return lines


class ListedRun(BaseModel):
    """A run in a list."""

    run_id: str
    status: str
    signature: str
    started_at: float
    """Seconds since the epoch."""
    steps: int
    reason: str
    next: str
    tokens: int | None = None
    usd: float | None = None


class RunsAnswer(Answer):
    """Runs on record, the newest first."""

    runs: list[ListedRun]
    next_offset: int | None = None

    @classmethod
    def of(cls, runs: Sequence[tuple[RunSummary, str]], next_offset: int | None) -> RunsAnswer:
        """Of runs, each with how to go on with it."""
        listed = [
            ListedRun(
                run_id=run.id,
                status=run.state,
                signature=cut(run.signature, SIGNATURE_CHARS),
                started_at=run.started_at,
                steps=run.steps,
                reason=cut(run.reason, OUTPUT_CHARS),
                next=way_on,
                tokens=run.tokens,
                usd=run.usd,
            )
            for run, way_on in runs
        ]
        return cls(runs=listed, next_offset=next_offset)

    def text(self) -> str:
        """One line for each."""
        lines = [
            " · ".join(
                part
                for part in (
                    run.run_id,
                    run.status,
                    f"{run.steps} step" + ("" if run.steps == 1 else "s"),
                    run.signature,
                    run.reason,
                    run.next,
                )
                if part
            )
            for run in self.runs
        ]
        if self.next_offset is not None:
            lines.append(f"[there are more; go on with offset {self.next_offset}]")
        return "\n".join(lines) or "No runs."


def preview(step: Step) -> RunStep:
    """A step, cut to length."""
    return RunStep(
        reasoning=cut(step.reasoning, REASONING_CHARS),
        code=cut(step.code, CODE_CHARS),
        output=cut("\n".join(part for part in (step.output, step.error) if part), OUTPUT_CHARS),
    )


def shown(value: Any) -> str:
    """A value as text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)


def _page(steps: Sequence[Step], cursor: int | None) -> dict[str, Any]:
    start = max(0, len(steps) - PREVIEW_STEPS) if cursor is None else max(0, cursor)
    page = steps[start : start + PREVIEW_STEPS]
    end = start + len(page)
    return {
        "trajectory": [preview(step) for step in page],
        "next_cursor": end if end < len(steps) else None,
    }


def _machine(result: RunResult) -> RunMachine | None:
    if not result.machine_id:
        return None
    return RunMachine(
        id=result.machine_id,
        backend=result.backend,
        isolation=result.isolation,
        fidelity=result.fidelity,
        kept=result.kept,
    )


def _usage(result: RunResult) -> RunUsage:
    return RunUsage(
        **asdict(result.usage),
        tokens=result.usage.tokens,
        seconds=round(result.seconds, 3),
        sub_calls=result.sub_calls,
    )


def _bounded(uri: str, value: JsonValue, warnings: list[str]) -> JsonValue:
    """An output, or the beginning and end of its text where it is too long for an answer."""
    text = shown(value)
    if len(text) <= OUTPUTS_CHARS:
        return value
    kind = "" if isinstance(value, str) else ", given as text here since it is too long"
    warnings.append(f"{uri}, an output of {len(text):,} characters, was cut{kind}.")
    return cut(text, OUTPUTS_CHARS)
