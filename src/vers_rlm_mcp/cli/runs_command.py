"""`vers-rlm-mcp runs`: lists, inspects, resumes, replays and prunes recorded runs."""

from __future__ import annotations

import json
import logging
import sys
from contextlib import AsyncExitStack, closing
from dataclasses import asdict
from typing import TYPE_CHECKING

from vers_rlm_mcp import runs
from vers_rlm_mcp.errors import BackendUnavailable, InputError
from vers_rlm_mcp.machines import open_fleet
from vers_rlm_mcp.store import Journals, Ledger

from .terminal import format_age, format_table, open_model_in, open_watched_fleet, print_result

if TYPE_CHECKING:
    import argparse
    from collections.abc import Collection, Sequence

    from vers_rlm_mcp.models import Model
    from vers_rlm_mcp.settings import Settings

logger = logging.getLogger(__name__)

SIGNATURE_CHARS = 60
"""Length to which the list cuts a run's signature."""

DIVERGED = 4
"""Exit code of a replay in which the machine responded differently."""


async def manage_runs(options: argparse.Namespace, settings: Settings) -> int:
    """Perform the action and return the exit code."""
    journals = Journals(settings.state_dir)
    if options.action == "list":
        print(_format_runs(runs.summaries(journals, _existing_checkpoints(settings))))
    elif options.action == "show":
        return _show(journals, options)
    elif options.action == "tree":
        about, nodes = runs.run_lineage(journals.of(options.run))
        print("\n".join([about, *runs.render_lineage(nodes)]))
    elif options.action == "diff":
        await _diff(journals, options, settings)
    elif options.action == "resume":
        return await _resume(options, settings)
    elif options.action == "replay":
        return await _replay(options, settings)
    else:
        async with open_fleet(settings) as fleet:
            pruned = await runs.prune(fleet, journals, options.keep)
        print(f"deleted {', '.join(pruned)}" if pruned else "nothing to prune")
    return 0


def _show(journals: Journals, options: argparse.Namespace) -> int:
    run = runs.load_record(journals.of(options.run))
    if run.result is None:
        raise InputError(f"{options.run} is {run.summary.state}, and has no outputs yet.")
    return print_result(run.result, as_json=options.json)


def _existing_checkpoints(settings: Settings) -> Collection[str] | None:
    """The commits of checkpoints that exist; None if the ledger cannot be read."""
    try:
        with closing(Ledger(settings.state_dir)) as ledger:
            return {commit.id for commit in ledger.checkpoints()}
    except BackendUnavailable as error:
        logger.warning("Checkpoints that were deleted are listed, too: %s", error)
        return None


async def _diff(journals: Journals, options: argparse.Namespace, settings: Settings) -> None:
    past = runs.load_past(journals.of(options.run))
    first, second = (past.checkpoint(step) for step in (options.a, options.b))
    async with open_fleet(settings) as fleet:
        bench = runs.Workbench(fleet, settings)
        difference = await runs.compare(bench, first.commit_id, second.commit_id)
    print(difference.text)


async def _resume(options: argparse.Namespace, settings: Settings) -> int:
    async with AsyncExitStack() as stack:
        model, sub_model = await _models(stack, options, settings)
        fleet, show = await stack.enter_async_context(open_watched_fleet(settings))
        result = await runs.resume(
            options.run,
            step=options.step,
            changes=_changes(options, settings),
            fleet=fleet,
            model=model,
            sub_model=sub_model,
            settings=settings,
            on_event=show,
        )
    return print_result(result, as_json=options.json)


async def _replay(options: argparse.Namespace, settings: Settings) -> int:
    if options.live_from is None and hasattr(options, "model"):
        raise InputError("A replay queries no model. Add --from K to use --model after step K.")
    async with AsyncExitStack() as stack:
        models = None
        if options.live_from is not None:
            models = await _models(stack, options, settings)
        fleet, show = await stack.enter_async_context(open_watched_fleet(settings))
        replayed = await runs.replay(
            options.run,
            live_from=options.live_from,
            changes=_changes(options, settings),
            fleet=fleet,
            models=models,
            settings=settings,
            on_event=show,
        )
    if options.json:
        print(json.dumps(asdict(replayed), ensure_ascii=False, indent=2))
    else:
        print_result(replayed.result, as_json=False)
    steps = ", ".join(str(each.step) for each in replayed.differences)
    where = f"The machine responded differently at step {steps}" if steps else "Nothing differed"
    same = "the same" if replayed.same_outputs else "different"
    print(f"{where}; the outputs are {same}.", file=sys.stderr)
    return DIVERGED if replayed.differences else 0


async def _models(
    stack: AsyncExitStack, options: argparse.Namespace, settings: Settings
) -> tuple[Model, Model]:
    """Open the run's own models, or those given on the command line."""
    past = runs.load_past(Journals(settings.state_dir).of(options.run))
    name = getattr(options, "model", None)
    sub_name = getattr(options, "sub_model", None) or name
    return (
        await open_model_in(stack, name or past.model),
        await open_model_in(stack, sub_name or past.sub_model),
    )


def _changes(options: argparse.Namespace, settings: Settings) -> runs.Changes:
    return runs.Changes(
        instructions=options.instructions,
        max_iterations=options.max_iterations,
        max_seconds=settings.max_seconds if hasattr(options, "max_seconds") else None,
        max_tokens=settings.max_tokens if hasattr(options, "max_tokens") else None,
        max_usd=settings.max_usd if hasattr(options, "max_usd") else None,
    )


def _format_runs(summaries: Sequence[runs.RunSummary]) -> str:
    if not summaries:
        return "no runs"
    rows = [("ID", "AGE", "STATE", "STEPS", "CHECKPOINTS", "TASK")]
    rows += [
        (
            each.id,
            format_age(each.started_at),
            each.state,
            str(each.steps),
            ",".join(map(str, each.checkpoints)) or "-",
            each.signature[:SIGNATURE_CHARS],
        )
        for each in summaries
    ]
    return format_table(rows)
