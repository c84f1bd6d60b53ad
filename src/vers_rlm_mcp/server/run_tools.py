# ruff: noqa: N803, PLC0415 - a tool's parameters are named as the client sends them; the rooms below
# are imported by the first call
"""`vers_rlm`: a whole run as one tool call, and what can be done with one that is on record."""

from contextlib import AsyncExitStack
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from mcp.server.elicitation import ElicitationResult
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.resolve import Resolve
from pydantic import Field

from .application import Application
from .consent import Budget, Consent, ask, require
from .detached import DetachedRuns
from .machine_tools import READS, REPLACES, RUNS_CODE, VmConfig
from .run_answers import RunAnswer, RunsAnswer, RunState
from .toolset import Answer, StrictTool

if TYPE_CHECKING:
    from vers_rlm_mcp.models import Model

Names = tuple[str | None, str | None]
"""What the call and what the settings, or the record, call a model."""

ITERATIONS = 20
SUB_CALLS = 30
"""The engine's own defaults, which a test compares: importing them here would load the engine."""

MAX_NODES = 300
"""Machines and commits that a tree shows: some 10,000 tokens."""

PAGE = 20
"""Runs in one list."""


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

    def __init__(self, app: Application, runs: DetachedRuns) -> None:
        self._app = app
        self._runs = runs

    def tools(self) -> list[StrictTool]:
        """All of them."""
        table = [
            (self.vers_rlm, "vers_rlm", "Recursive Language Model", RUNS_CODE),
            (self.rlm_result, "rlmResult", "Result of a run", READS),
            (self.rlm_runs, "rlmRuns", "List runs", READS),
            (self.rlm_cancel, "rlmCancel", "End a run", REPLACES),
            (self.rlm_resume, "rlmResume", "Go on with a run", RUNS_CODE),
            (self.vm_tree, "vmTree", "Who came from whom", READS),
        ]
        return [StrictTool.of(*row) for row in table]

    async def vers_rlm(
        self,
        context: Context,
        consent: Annotated[ElicitationResult[Consent], Resolve(ask)],
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
        minutes.
        """
        from vers_rlm_mcp.runs import Journal, RunRequest, check_request, opened_files, run

        from .sampling import SamplingModel

        settings, fleet = self._app.settings, await self._app.fleet()
        limit = budget or Budget()
        require(consent)
        self._app.live.admit(fleet.principal)
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
            models = _models(
                stack, context, (model, settings.model), (subModel, settings.sub_model)
            )
            journal = stack.enter_context(Journal((await self._runs.records()).new()))
            return await self._runs.begin(
                context,
                journal.run_id,
                partial(run, request, fleet=fleet, settings=settings, journal=journal, **models),
                stack.pop_all(),
                attached=any(isinstance(each, SamplingModel) for each in models.values()),
            )

    async def rlm_resume(
        self,
        context: Context,
        consent: Annotated[ElicitationResult[Consent], Resolve(ask)],
        runId: str,
        step: Annotated[
            int | None, Field(ge=0, description="Its end. Default: the last checkpoint")
        ] = None,
        model: Annotated[str | None, Field(description="Default: the run's own")] = None,
        budget: Budget | None = None,
    ) -> RunState:
        """Go on with a vers_rlm run from a checkpoint, on a new VM restored from it.

        For one that was cut off, ran dry or failed, or to try again from an earlier step. No reply
        is paid for twice.
        """
        from vers_rlm_mcp.runs import Changes, recall, resume

        from .sampling import SamplingModel

        settings, fleet = self._app.settings, await self._app.fleet()
        past = recall((await self._runs.records()).of(runId))
        limit = budget or Budget()
        require(consent)
        self._app.live.admit(fleet.principal)
        changes = Changes(max_seconds=limit.seconds, max_tokens=limit.tokens, max_usd=limit.usd)
        async with AsyncExitStack() as stack:
            models = _models(stack, context, (model, past.model), (model, past.sub_model))
            return await self._runs.begin(
                context,
                runId,
                partial(
                    resume,
                    runId,
                    step=step,
                    changes=changes,
                    fleet=fleet,
                    settings=settings,
                    **models,
                ),
                stack.pop_all(),
                attached=any(isinstance(each, SamplingModel) for each in models.values()),
            )

    async def rlm_result(
        self,
        context: Context,
        runId: str,
        waitSeconds: Annotated[
            float | None, Field(ge=0, description="Default: what the client allows")
        ] = None,
        cursor: Annotated[
            int | None, Field(ge=0, description="Show the steps after this. Default: the last")
        ] = None,
    ) -> RunState:
        """Wait for a vers_rlm run that still goes on, or get the result of any earlier one."""
        return await self._runs.follow(context, runId, waitSeconds, cursor)

    async def rlm_cancel(self, runId: str) -> RunState:
        """End a vers_rlm run; its record stays."""
        return await self._runs.end(runId)

    async def rlm_runs(self, offset: Annotated[int, Field(ge=0)] = 0) -> RunsAnswer:
        """List vers_rlm runs and their states, newest first."""
        return await self._runs.listed(slice(offset, offset + PAGE))

    async def vm_tree(
        self,
        runId: Annotated[str | None, Field(description="Default: all VMs there are")] = None,
    ) -> TreeAnswer:
        """Show which VM or commit came from which, at which step, what it cost, who won."""
        from vers_rlm_mcp.runs import drawn, fleet_lineage, run_lineage

        if runId is None:
            about, nodes = "All VMs and commits", await fleet_lineage(await self._app.fleet())
        else:
            about, nodes = run_lineage((await self._runs.records()).of(runId))
        return TreeAnswer(
            about=about,
            nodes=[asdict(node) for node in nodes[:MAX_NODES]],
            left_out=max(0, len(nodes) - MAX_NODES),
            tree="\n".join(drawn(nodes, limit=MAX_NODES)) or "(none)",
        )


def _models(stack: AsyncExitStack, context: Context, root: Names, sub: Names) -> "dict[str, Model]":
    """The model of a run and that of its sub-calls, closed with the stack."""
    from .sampling import choose_model

    model = choose_model(*root, context)
    stack.push_async_callback(model.aclose)
    sub_model = choose_model(sub[0], sub[1] or model.name, context)
    stack.push_async_callback(sub_model.aclose)
    return {"model": model, "sub_model": sub_model}
