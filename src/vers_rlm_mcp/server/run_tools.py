# ruff: noqa: D101, N803, PLC0415 - the fields of an answer are explained by its tool; a tool's
# parameters are named as the client sends them; the rooms below are imported by the first call
"""`vers_rlm`, a whole run as one tool call, and tools for runs under way or on record."""

from contextlib import AsyncExitStack
from dataclasses import asdict
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import anyio
from anyio import to_thread
from mcp.server.elicitation import ElicitationResult
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.resolve import Resolve
from pydantic import Field

from vers_rlm_mcp.errors import UsageError

from .application import application
from .bounds import shorten, utc
from .consent import Budget, Consent, ask, require
from .known_clients import client_of
from .machine_tools import VmConfig
from .progress import Progress
from .run_answers import REASON_CHARS, RunFields, RunState, count, describe_run, room_of
from .schemas import IN_WORDS
from .task_extension import TASK_SECONDS, takes_tasks
from .toolset import READS, REPLACES, RUNS_CODE, Answer, Toolset, without_none

if TYPE_CHECKING:
    from vers_rlm_mcp.models import Model
    from vers_rlm_mcp.rlm import Event
    from vers_rlm_mcp.runs import RunSummary

    from .live_runs import LiveRun

ITERATIONS = 20
SUB_CALLS = 30
"""The engine's own defaults, with which a test compares them: importing them would load the
engine."""

MAX_NODES = 300
"""Machines and commits that a tree shows: some 10,000 tokens."""

PAGE = 20
"""Runs in one list."""

SIGNATURE_CHARS = 120
"""Characters of a run's signature in a list."""

POLL_SECONDS = 0.5
"""Between two looks at a run of another process."""

CANCEL_SECONDS = 25.0
"""How long to wait for a cancelled run to end; its clean-up is bounded below that."""

TOOLS = Toolset()

META_HINT = "anthropic/searchHint"
"""The key in a tool's `_meta` for words by which Claude Code finds a tool that it has deferred."""

HINT = "big large file log dataset csv data analysis codebase context agent sub-agent"

EXAMPLE = {
    "signature": "log, task -> cause: str, lines: list[int]",
    "inputs": {"task": "Find the first error"},
    "files": {"log": "/path/on/the/host/app.log"},
}


@TOOLS.tool("vers_rlm", "Recursive Language Model", RUNS_CODE, EXAMPLE, meta={META_HINT: HINT})
async def vers_rlm(
    context: Context,
    consent: Annotated[ElicitationResult[Consent], Resolve(ask)],
    signature: Annotated[
        str,
        Field(description='Inputs -> outputs, typed: "log, task -> cause: str, lines: list[int]"'),
    ],
    inputs: Annotated[dict[str, Any] | None, Field(description="A value for each input")] = None,
    instructions: str = "",
    maxIterations: Annotated[
        int, Field(ge=1, le=200, description="Default 20, max 200"), IN_WORDS
    ] = ITERATIONS,
    maxLLMCalls: Annotated[
        int,
        Field(ge=0, le=10_000, description="Sub-model calls. Default 30, max 10000"),
        IN_WORDS,
    ] = SUB_CALLS,
    vmId: Annotated[str | None, Field(description="Work in this VM. Default: a new one")] = None,
    vmConfig: VmConfig | None = None,
    keepVM: Annotated[bool, Field(description="Keep the VM after the run. Default false")] = False,
    files: Annotated[
        list[str] | dict[str, str] | None,
        Field(
            description="Host files, directories, patterns, or {name: path}; a name may be a str "
            "input's"
        ),
    ] = None,
    outputFiles: Annotated[
        list[str] | None,
        Field(description="Patterns of VM files to keep; `file` outputs, /workspace/out are kept"),
    ] = None,
    verify: Annotated[
        str | None,
        Field(description="Shell command that must accept the outputs (JSON on stdin; exit 0)"),
    ] = None,
    maxDepth: Annotated[
        int,
        Field(ge=0, le=3, description="Levels of branches and recursion. Default 1, max 3"),
        IN_WORDS,
    ] = 1,
    model: Annotated[str | None, Field(description="provider:model")] = None,
    subModel: str | None = None,
    budget: Budget | None = None,
) -> Answer[RunFields]:
    """Solve a task too big for one context: a sub-agent works on it in a Linux VM.

    A model writes Python into a REPL in the VM, runs commands, reads files of any size, asks
    sub-models about pieces, snapshots and branches the VM, and returns typed outputs. Use it
    for big files, codebases and logs, experiments, or anything needing many steps. Takes
    minutes.
    """
    from vers_rlm_mcp.runs import RunRequest, check_request, opened_files, run

    from .sampling import choose_models

    app = application(context)
    settings, fleet = app.settings, await app.fleet()
    limit = budget or Budget()
    require(consent)
    app.live_runs.admit(fleet.principal)
    async with AsyncExitStack() as resources:
        opened = resources.enter_context(opened_files(files or (), settings.allow_dir))
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
            output_files=outputFiles or (),
            files=opened,
            notes=opened.notes,
            max_seconds=limit.seconds,
            max_tokens=limit.tokens,
            max_usd=limit.usd,
        )
        beginning = check_request(request)
        models = choose_models(
            context, settings, (model, settings.model), (subModel, settings.sub_model), resources
        )
        journal = resources.enter_context(app.journals().new())
        perform = partial(
            run,
            request,
            fleet=fleet,
            settings=settings,
            journal=journal,
            beginning=beginning,
            **models,
        )
        # From here on `resources` belong to the run, and outlive this call.
        live = app.live_runs.start(journal.run_id, fleet.principal, perform, resources)
    return await _outcome(context, live, models)


@TOOLS.tool("rlmResult", "Result of a run", READS)
async def get_result(
    context: Context,
    runId: str,
    waitSeconds: Annotated[
        float | None, Field(ge=0, description="Default: what the client allows")
    ] = None,
    cursor: Annotated[
        int | None,
        Field(
            ge=0, description="next_cursor of the last answer; 0: all steps. Default: the result"
        ),
    ] = None,
) -> Answer[RunState]:
    """Wait for a vers_rlm run that is still running, or get the result of any earlier one."""
    app = application(context)
    journal, live = await app.find_run(runId)
    most = client_of(context).seconds
    seconds = most if waitSeconds is None else min(waitSeconds, most)
    if live:
        await _wait(context, live, seconds)
    else:
        async with Progress(context.report_progress, "The run"):
            with anyio.move_on_after(seconds):
                while journal.is_open():  # noqa: ASYNC110 - it is another process's
                    await anyio.sleep(POLL_SECONDS)
    return await describe_run(app, runId, cursor, room=room_of(context))


class RunsFields(TypedDict):
    runs: list[dict[str, Any]]
    next_offset: int | None


@TOOLS.tool("rlmRuns", "List runs", READS)
async def list_runs(
    context: Context, offset: Annotated[int, Field(ge=0)] = 0
) -> Answer[RunsFields]:
    """List vers_rlm runs and their states, newest first."""
    from vers_rlm_mcp.runs import existing_checkpoints, next_step_hint, summary

    app = application(context)
    fleet, journals = await app.fleet(), app.journals()
    known = await to_thread.run_sync(journals.all)
    end = offset + PAGE
    existing = await existing_checkpoints(fleet)
    page = [
        await to_thread.run_sync(summary, journal, existing) for journal in known[::-1][offset:end]
    ]
    runs = [(run, next_step_hint(run)) for run in page]
    next_offset = end if len(known) > end else None
    lines = [_line(run, next_step) for run, next_step in runs]
    if next_offset is not None:
        lines.append(f"[there are more; continue with offset {next_offset}]")
    fields: RunsFields = {
        "runs": [_run_fields(run, next_step) for run, next_step in runs],
        "next_offset": next_offset,
    }
    return Answer(fields, "\n".join(lines) or "No runs.")


def _run_fields(run: "RunSummary", next_step: str) -> dict[str, Any]:
    return without_none(
        {
            "run_id": run.id,
            "status": run.state,
            "signature": shorten(run.signature, SIGNATURE_CHARS),
            "started_at": run.started_at,
            "steps": run.steps,
            "reason": shorten(run.reason, REASON_CHARS),
            "next": next_step,
            "tokens": run.tokens,
            "usd": run.usd,
        }
    )


def _line(run: "RunSummary", next_step: str) -> str:
    signature, reason = shorten(run.signature, SIGNATURE_CHARS), shorten(run.reason, REASON_CHARS)
    started = utc(run.started_at)
    cost = f"{run.tokens:,} tokens" if run.tokens is not None else ""
    money = f"${run.usd:.4f}" if run.usd is not None else ""
    steps = count(run.steps, "step")
    parts = (run.id, run.state, started, steps, cost, money, signature, reason, next_step)
    return " · ".join(part for part in parts if part)


@TOOLS.tool("rlmCancel", "End a run", REPLACES)
async def cancel_run(context: Context, runId: str) -> Answer[RunState]:
    """End a vers_rlm run; its record stays."""
    app = application(context)
    journal, live = await app.find_run(runId)
    if live:
        live.cancel()
        await live.wait(CANCEL_SECONDS)
    elif journal.is_open():
        raise UsageError(f"{runId} is under way in another process: end it there.")
    return await describe_run(app, runId, room=room_of(context))


@TOOLS.tool("rlmResume", "Continue a run", RUNS_CODE)
async def resume_run(
    context: Context,
    consent: Annotated[ElicitationResult[Consent], Resolve(ask)],
    runId: str,
    step: Annotated[
        int | None, Field(ge=0, description="Its end. Default: the last checkpoint")
    ] = None,
    model: Annotated[str | None, Field(description="Default: the run's own")] = None,
    budget: Budget | None = None,
) -> Answer[RunState]:
    """Continue a vers_rlm run from a checkpoint, on a new VM restored from it.

    For one that was cut off, ran dry or failed, or to try again from an earlier step. No reply
    is paid for twice.
    """
    from vers_rlm_mcp.runs import Changes, load_past, resume

    from .sampling import choose_models

    app = application(context)
    settings, fleet = app.settings, await app.fleet()
    past = load_past(app.journals().of(runId))
    limit = budget or Budget()
    require(consent)
    app.live_runs.admit(fleet.principal)
    changes = Changes(max_seconds=limit.seconds, max_tokens=limit.tokens, max_usd=limit.usd)
    async with AsyncExitStack() as resources:
        models = choose_models(
            context, settings, (model, past.model), (model, past.sub_model), resources
        )
        perform = partial(
            resume, runId, step=step, changes=changes, fleet=fleet, settings=settings, **models
        )
        live = app.live_runs.start(runId, fleet.principal, perform, resources)
    return await _outcome(context, live, models)


class TreeFields(TypedDict):
    about: str
    nodes: list[dict[str, Any]]
    """Each with ``id``, ``kind``, ``parent``, ``origin``, ``step``, ``alive``, ``run``, and
    ``remarks``."""
    left_out: int
    """How many further nodes there are."""
    tree: str
    """The tree as text."""


@TOOLS.tool("vmTree", "Who came from whom", READS)
async def show_tree(
    context: Context,
    runId: Annotated[str | None, Field(description="Default: all VMs there are")] = None,
) -> Answer[TreeFields]:
    """Show which VM or commit came from which, at which step, what it cost, who won."""
    from vers_rlm_mcp.runs import fleet_lineage, render_lineage, run_lineage

    app = application(context)
    if runId is None:
        about, nodes = "All VMs and commits", await fleet_lineage(await app.fleet())
    else:
        about, nodes = run_lineage(app.journals().of(runId))
    tree = "\n".join(render_lineage(nodes, limit=MAX_NODES)) or "(none)"
    fields: TreeFields = {
        "about": about,
        "nodes": [asdict(node) for node in nodes[:MAX_NODES]],
        "left_out": max(0, len(nodes) - MAX_NODES),
        "tree": tree,
    }
    return Answer(fields, f"{about}\n{tree}")


async def _outcome(
    context: Context, live: "LiveRun", models: "dict[str, Model]"
) -> Answer[RunFields]:
    """Wait for a run that has just started, as long as its client does.

    Cancelling the call cancels the run, unless the client has merely timed out. A run whose model
    is the client's own needs the call, which then waits to its end.

    Raises:
        VersRlmError: What ended the run, within the wait.
    """
    from .sampling import SamplingModel

    app = application(context)
    attached = any(isinstance(model, SamplingModel) for model in models.values())
    if attached:
        seconds = inf
    elif takes_tasks(context):
        seconds = TASK_SECONDS
    else:
        seconds = client_of(context).seconds
    try:
        await _wait(context, live, seconds)
    except anyio.get_cancelled_exc_class():
        if attached or not await app.cancellations.is_timeout(context):
            live.cancel()
        raise
    if live.error:
        raise live.error
    return await describe_run(app, live.run_id, room=room_of(context))


async def _wait(context: Context, live: "LiveRun", seconds: float) -> None:
    """Wait for a run, and pass the narration of its events to the client."""
    from vers_rlm_mcp.runs import events, narrate

    def report_event(event: "Event") -> None:
        if message := narrate(event):
            inner = event.event if isinstance(event, events.InChild) else event
            # A run may have thousands of these; a client sees the latest.
            passing = isinstance(inner, events.SubCallStarted | events.SubCallFinished)
            count_steps()
            progress.say(message, passing=passing)

    def count_steps() -> None:
        done, most = live.steps
        if most:
            progress.count(done, most)

    async with Progress(context.report_progress, "The run", in_steps=True) as progress:
        count_steps()
        progress.say(f"Run {live.run_id} is under way")
        with live.subscribe(report_event):
            await live.wait(seconds)
