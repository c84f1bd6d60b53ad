# ruff: noqa: N803, PLC0415 - a tool's parameters are named as the client sends them; the rooms below
# are imported by the first call
"""`vers_rlm`: a whole run as one tool call, and what can be done with one that is on record."""

import json
from contextlib import AsyncExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from mcp.server.mcpserver import Context
from pydantic import BaseModel, Field, JsonValue

from .answers import cut
from .app import Application
from .progress import Progress
from .tool import Answer, Options, StrictTool
from .vm_tools import READS, RUNS_CODE, VmConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from vers_rlm_mcp.rlm import Event, Step
    from vers_rlm_mcp.runs import RunResult

ITERATIONS = 20
SUB_CALLS = 30
"""The engine's own defaults, which a test compares: importing them here would load the engine."""

REASONING_CHARS = 300
CODE_CHARS = 600
OUTPUT_CHARS = 600
"""Characters of each part of a step in the trajectory's preview: what the seed of this tool showed,
within what clients pass on (twenty steps are some 8,000 tokens)."""

PREVIEW_STEPS = 20
"""Steps in the preview, the last ones: a run that needs more is read from its journal."""

OUTPUTS_CHARS = 60_000
"""Characters of one output: with it an answer stays below what clients cut at."""


MAX_NODES = 300
"""Machines and commits that a tree shows: some 10,000 tokens."""

PASSING = frozenset({"tool_called", "sub_call_started", "sub_call_finished"})
"""Kinds of events of which a run may have thousands; a client is shown the latest."""


class Budget(Options):
    """What a run may use; the server's settings are the upper limit."""

    usd: float | None = Field(default=None, gt=0)
    tokens: int | None = Field(default=None, gt=0)
    seconds: float | None = Field(default=None, gt=0)


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


class RunAnswer(Answer):
    """The outputs of a run, and how it came to them."""

    run_id: str
    status: str
    outputs: dict[str, Any]
    steps: int
    reason: str
    verified_by: str | None = None
    """The command that accepted the outputs."""
    machine: RunMachine
    usage: RunUsage
    trajectory: list[RunStep]
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, result: "RunResult") -> "RunAnswer":
        """Of a run's result, cut to length."""
        warnings = list(result.warnings)
        outputs = {name: _bounded(name, value, warnings) for name, value in result.outputs.items()}
        return cls(
            run_id=result.run_id,
            status=result.status,
            outputs=outputs,
            steps=len(result.steps),
            reason=result.reason,
            verified_by=result.verified,
            machine=RunMachine(
                id=result.machine_id,
                backend=result.backend,
                isolation=result.isolation,
                fidelity=result.fidelity,
                kept=result.kept,
            ),
            usage=_usage(result),
            trajectory=[_preview(step) for step in result.steps[-PREVIEW_STEPS:]],
            warnings=tuple(warnings),
        )

    def text(self) -> str:
        """Markdown: how it ended, the outputs, the trajectory."""
        return "\n".join([*self._heading(), *self._outputs(), *self._trajectory()])

    def _heading(self) -> list[str]:
        vm, used = self.machine, self.usage
        steps = f"{self.steps} step" + ("" if self.steps == 1 else "s")
        headline = {
            "finished": f"✅ Vers RLM completed in {steps}.",
            "extracted": f"✅ Vers RLM completed in {steps}; outputs extracted. {self.reason}",
        }.get(self.status, f"⚠️ Vers RLM ended after {steps} with partial outputs. {self.reason}")
        money = "" if used.usd is None else f", ${used.usd:.4f}"
        return [
            headline,
            f"VM: {vm.id} ({'kept alive' if vm.kept else 'deleted'}; {vm.backend}, isolation: "
            f"{vm.isolation}, fidelity: {vm.fidelity})",
            f"Usage: {used.tokens:,} tokens{money}, {used.seconds:.1f} s, {used.sub_calls} "
            f"sub-calls (run {self.run_id})",
            *([f"Verified by `{self.verified_by}`"] if self.verified_by else []),
            *(f"⚠️ {warning}" for warning in self.warnings),
        ]

    def _outputs(self) -> list[str]:
        lines = [f"**{name}**: {_shown(value)}" for name, value in self.outputs.items()]
        return ["", "## Outputs", *(lines or ["(none)"])]

    def _trajectory(self) -> list[str]:
        first = self.steps - len(self.trajectory) + 1
        lines = ["", "## Trajectory"]
        for number, step in enumerate(self.trajectory, first):
            lines += [
                f"=== Step {number} ===",
                *([f"Reasoning: {step.reasoning}"] if step.reasoning else []),
            ]
            lines += ["Code:", "```python", step.code, "```"] if step.code else []
            lines += ["Output:", step.output]
        return lines


class TreeAnswer(Answer):
    """Who came from whom."""

    about: str
    nodes: list[dict[str, Any]]
    """Each with ``id``, ``kind``, ``parent``, ``origin``, ``step``, ``alive``, ``run``, and
    ``remarks``."""
    left_out: int
    """Nodes beyond those."""
    tree: str
    """All of it, drawn."""

    def text(self) -> str:
        """What it is about, and the tree."""
        return f"{self.about}\n{self.tree}"


class RlmTools:
    """The tools that run a Recursive Language Model."""

    def __init__(self, app: Application) -> None:
        self._app = app

    def tools(self) -> list[StrictTool]:
        """All of them."""
        return [
            StrictTool.of(self.vers_rlm, "vers_rlm", "Recursive Language Model", RUNS_CODE),
            StrictTool.of(self.rlm_resume, "rlmResume", "Go on with a run", RUNS_CODE),
            StrictTool.of(self.vm_tree, "vmTree", "Who came from whom", READS),
        ]

    async def vers_rlm(
        self,
        context: Context,
        signature: Annotated[
            str,
            Field(
                description='Inputs -> outputs, typed: "log, task -> cause: str, lines: list[int]"'
            ),
        ],
        inputs: Annotated[
            dict[str, Any] | None, Field(description="A value for each input")
        ] = None,
        instructions: str = "",
        maxIterations: Annotated[
            int, Field(ge=1, le=200, description="Default 20, max 200")
        ] = ITERATIONS,
        maxLLMCalls: Annotated[
            int, Field(ge=0, le=10_000, description="Sub-model calls. Default 30, max 10000")
        ] = SUB_CALLS,
        vmId: Annotated[
            str | None, Field(description="Work in this VM. Default: a new one")
        ] = None,
        vmConfig: VmConfig | None = None,
        keepVM: Annotated[
            bool, Field(description="Keep the VM after the run. Default false")
        ] = False,
        files: Annotated[
            list[str] | dict[str, str] | None,
            Field(description="Host files: paths, or {name: path}; a name may be a str input's"),
        ] = None,
        verify: Annotated[
            str | None,
            Field(description="Shell command that must accept the outputs (JSON on stdin; exit 0)"),
        ] = None,
        maxDepth: Annotated[
            int, Field(ge=0, le=3, description="Levels of branches and recursion. Default 1, max 3")
        ] = 1,
        model: Annotated[str | None, Field(description="provider:model")] = None,
        subModel: str | None = None,
        budget: Budget | None = None,
    ) -> RunAnswer:
        """Solve a task too big for one context: a sub-agent works on it in a Linux VM.

        A model writes Python into a REPL in the VM, runs commands, reads files of any size, asks
        sub-models about pieces, snapshots and branches the VM, and returns typed outputs. Use it
        for big files, codebases and logs, experiments, or anything needing many steps. Takes
        minutes; reports progress.
        """
        from vers_rlm_mcp.runs import RunRequest, check_request, opened_files, run

        from .sampling import choose_model

        settings = self._app.settings
        limit = budget or Budget()
        async with AsyncExitStack() as stack:
            request = RunRequest(
                signature=signature,
                inputs=inputs or {},
                instructions=instructions,
                max_iterations=maxIterations,
                max_llm_calls=maxLLMCalls,
                machine_id=vmId,
                spec=vmConfig.spec() if vmConfig else None,
                keep_machine=keepVM,
                verify=verify,
                max_depth=maxDepth,
                files=stack.enter_context(opened_files(files or (), settings.allow_dir)),
                max_seconds=limit.seconds,
                max_tokens=limit.tokens,
                max_usd=limit.usd,
            )
            check_request(request)
            root = choose_model(model, settings.model, context)
            stack.push_async_callback(root.aclose)
            sub = choose_model(subModel, settings.sub_model or root.name, context)
            stack.push_async_callback(sub.aclose)
            result = await run(
                request,
                fleet=await self._app.fleet(),
                model=root,
                sub_model=sub,
                settings=settings,
                on_event=await self._shown(stack, context),
            )
        return RunAnswer.of(result)

    async def rlm_resume(
        self,
        context: Context,
        runId: str,
        step: Annotated[
            int | None, Field(ge=0, description="Its end. Default: the last checkpoint")
        ] = None,
        model: Annotated[str | None, Field(description="Default: the run's own")] = None,
        subModel: str | None = None,
        budget: Budget | None = None,
    ) -> RunAnswer:
        """Go on with a vers_rlm run from a checkpoint, on a new VM restored from it.

        For a run that was cut off, ran dry or failed; or to try again from an earlier step.
        What models replied before is not paid for twice.
        """
        from vers_rlm_mcp.runs import Changes, Records, recall, resume

        from .sampling import choose_model

        settings, fleet = self._app.settings, await self._app.fleet()
        past = recall(Records.seen_by(fleet, settings).of(runId))
        limit = budget or Budget()
        async with AsyncExitStack() as stack:
            root = choose_model(model, past.model, context)
            stack.push_async_callback(root.aclose)
            sub = choose_model(subModel or model, past.sub_model, context)
            stack.push_async_callback(sub.aclose)
            result = await resume(
                runId,
                step=step,
                changes=Changes(
                    max_seconds=limit.seconds, max_tokens=limit.tokens, max_usd=limit.usd
                ),
                fleet=fleet,
                model=root,
                sub_model=sub,
                settings=settings,
                on_event=await self._shown(stack, context),
            )
        return RunAnswer.of(result)

    async def vm_tree(
        self,
        runId: Annotated[str | None, Field(description="Default: all VMs there are")] = None,
    ) -> TreeAnswer:
        """Show which VM or commit came from which, at which step, what it cost, who won."""
        from vers_rlm_mcp.runs import Records, drawn, fleet_lineage, run_lineage

        fleet = await self._app.fleet()
        if runId is None:
            about, nodes = "All VMs and commits", await fleet_lineage(fleet)
        else:
            records = Records.seen_by(fleet, self._app.settings)
            about, nodes = run_lineage(records.of(runId))
        return TreeAnswer(
            about=about,
            nodes=[asdict(node) for node in nodes[:MAX_NODES]],
            left_out=max(0, len(nodes) - MAX_NODES),
            tree="\n".join(drawn(nodes, limit=MAX_NODES)) or "(none)",
        )

    async def _shown(self, stack: AsyncExitStack, context: Context) -> "Callable[[Event], None]":
        """What tells the client and the tracer of a run's events, while the stack stands."""
        from .spans import RunSpans

        spans = stack.enter_context(RunSpans())
        progress = await stack.enter_async_context(Progress(context.report_progress, "The run"))

        def on_event(event: "Event") -> None:
            spans(event)
            _tell(progress, event)

        return on_event


def _tell(progress: Progress, event: "Event") -> None:
    from vers_rlm_mcp.rlm import InChild, narrate

    message = narrate(event)
    if message:
        inner = event.event if isinstance(event, InChild) else event
        progress.say(message, passing=inner.kind() in PASSING)


def _usage(result: "RunResult") -> RunUsage:
    used = result.usage
    return RunUsage(
        tokens=used.tokens,
        input_tokens=used.input_tokens,
        output_tokens=used.output_tokens,
        cache_read_tokens=used.cache_read_tokens,
        cache_write_tokens=used.cache_write_tokens,
        usd=used.usd,
        seconds=round(result.seconds, 3),
        sub_calls=result.sub_calls,
    )


def _preview(step: "Step") -> RunStep:
    return RunStep(
        reasoning=cut(step.reasoning, REASONING_CHARS),
        code=cut(step.code, CODE_CHARS),
        output=cut("\n".join(part for part in (step.output, step.error) if part), OUTPUT_CHARS),
    )


def _bounded(name: str, value: JsonValue, warnings: list[str]) -> JsonValue:
    """An output, or the beginning and end of its text where it is too long for an answer."""
    text = _shown(value)
    if len(text) <= OUTPUTS_CHARS:
        return value
    kind = "" if isinstance(value, str) else ", given as text here since it is too long"
    warnings.append(f"The output {name!r} was cut: it has {len(text):,} characters{kind}.")
    return cut(text, OUTPUTS_CHARS)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)
