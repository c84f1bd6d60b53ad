"""`vers-rlm-mcp runs`: lists, inspects, resumes, replays and deletes recorded runs."""

from __future__ import annotations

import logging
import sys
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console

from vers_rlm_mcp import RLM, runs
from vers_rlm_mcp.errors import BackendUnavailable, InputError, UsageError
from vers_rlm_mcp.machines import open_fleet
from vers_rlm_mcp.store import Journals, Ledger

from .exit_codes import EXIT_DIVERGED
from .live_view import LiveView, watch
from .save_files import save_files
from .terminal import (
    format_age,
    format_outputs,
    format_table,
    format_value,
    keywords,
    make_printable,
    print_json,
    print_result,
    print_safe,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from types import SimpleNamespace
    from typing import Any

    from vers_rlm_mcp.rlm import Step
    from vers_rlm_mcp.settings import Settings
    from vers_rlm_mcp.store import StoredJournal

logger = logging.getLogger(__name__)

TASK_CHARS = 60
"""Length to which the list cuts a run's signature."""

STEP_CHARS = 100
"""Length to which `runs show` cuts each part of a step in the overview."""

LATEST = "last"
"""Stands for the latest run."""


async def list_recorded(settings: Settings, options: SimpleNamespace) -> None:
    """List recorded runs, the latest first."""
    existing = _existing_checkpoints(settings)
    found = sorted(
        runs.summaries(Journals(settings.state_dir), existing), key=lambda each: -each.started_at
    )
    if options.state:
        found = [each for each in found if each.state == options.state]
    found = found[: options.limit]
    if options.as_json:
        print_json([asdict(each) for each in found])
    else:
        print(_format_runs(found))


async def show_run(settings: Settings, options: SimpleNamespace) -> None:
    """Show a run's answer, steps and cost, or one of its steps in full."""
    record = runs.load_record(_find(settings, options.run))
    steps = record.steps
    if options.step is not None:
        steps = [step for step in steps if step.number == options.step]
        if not steps:
            numbers = ", ".join(str(step.number) for step in record.steps) or "none"
            raise InputError(f"{record.summary.id} has no step {options.step}, only: {numbers}.")
    if options.as_json:
        one = options.step is not None
        print_json(asdict(steps[0]) if one else _describe(record))
    elif options.step is not None:
        print(make_printable(_format_step(steps[0])))
    else:
        print(make_printable(_format_record(record)))


async def print_outputs(settings: Settings, options: SimpleNamespace) -> None:
    """Print a run's outputs, or one of them alone."""
    journal = _find(settings, options.run)
    result = runs.load_record(journal).result
    outputs = dict(result.outputs) if result else {}
    if options.name is None:
        if options.as_json:
            print_json(outputs)
        elif outputs:
            print(format_outputs(outputs))
        else:
            raise UsageError(f"{journal.run_id} has no outputs: see `runs show {journal.run_id}`.")
    elif options.name not in outputs:
        names = ", ".join(outputs) or "none"
        raise InputError(f"{journal.run_id} has no output {options.name!r}, only: {names}.")
    elif options.as_json:
        print_json(outputs[options.name])
    else:
        print(format_value(outputs[options.name]))


async def hand_out_files(settings: Settings, options: SimpleNamespace) -> int:
    """List the files that a run handed over, or copy them."""
    journal = _find(settings, options.run)
    result = runs.load_record(journal).result
    files = result.files if result else ()
    if options.out:
        return save_files(journal, files, options)
    if options.as_json:
        print_json([{**asdict(each), "kept": str(journal.file(each.name))} for each in files])
    elif files:
        rows = [(each.name, f"{each.size:,}", each.path) for each in files]
        print(make_printable(format_table([("NAME", "BYTES", "PATH"), *rows])))
    else:
        print("no files")
    return 0


async def show_tree(settings: Settings, options: SimpleNamespace) -> None:
    """Show where a run's machines and commits come from."""
    about, nodes = runs.run_lineage(_find(settings, options.run))
    print("\n".join([about, *runs.render_lineage(nodes)]))


async def show_difference(settings: Settings, options: SimpleNamespace) -> None:
    """Show what changed in a run's machine between two steps."""
    past = runs.load_past(_find(settings, options.run))
    first, second = (past.checkpoint(step) for step in (options.a, options.b))
    async with open_fleet(settings) as fleet:
        bench = runs.Workbench(fleet, settings)
        difference = await runs.compare(bench, first.commit_id, second.commit_id)
    print(difference.text)


async def resume_run(settings: Settings, options: SimpleNamespace) -> int:
    """Resume a run, and return the exit code."""
    run_id = _find(settings, options.run).run_id
    async with RLM(**keywords(settings)) as engine:
        run = engine.resume(run_id, step=options.step, **_changes(settings, options))
        result = await watch(run, settings, quiet=options.quiet)
    return print_result(result, as_json=options.as_json, quiet=options.quiet)


async def replay_run(settings: Settings, options: SimpleNamespace) -> int:
    """Replay a run, and return the exit code."""
    if options.live_from is None and options.model:
        raise InputError("A replay queries no model. Add --from K to use --model after step K.")
    run_id = _find(settings, options.run).run_id
    console, view = Console(stderr=True, quiet=options.quiet), LiveView(settings)

    def show(event: runs.events.Event) -> None:
        if line := view.follow(event):
            print_safe(console, line)

    async with RLM(**keywords(settings)) as engine:
        replayed = await engine.replay(
            run_id, live_from=options.live_from, on_event=show, **_changes(settings, options)
        )
    if options.as_json:
        print_json(asdict(replayed))
    else:
        print_result(replayed.result, as_json=False, quiet=options.quiet)
    steps = ", ".join(str(each.step) for each in replayed.differences)
    where = f"The machine responded differently at step {steps}" if steps else "Nothing differed"
    same = "the same" if replayed.same_outputs else "different"
    print(f"{where}; the outputs are {same}.", file=sys.stderr)
    return EXIT_DIVERGED if replayed.differences else 0


async def delete_recorded(settings: Settings, options: SimpleNamespace) -> None:
    """Delete runs with their checkpoints."""
    journals = [_find(settings, name) for name in options.runs]
    async with open_fleet(settings) as fleet:
        await runs.delete_runs(fleet, journals)
    print(f"deleted {', '.join(journal.run_id for journal in journals)}")


async def prune_recorded(settings: Settings, options: SimpleNamespace) -> None:
    """Delete all but the latest runs."""
    async with open_fleet(settings) as fleet:
        pruned = await runs.prune(fleet, Journals(settings.state_dir), options.keep)
    print(f"deleted {', '.join(pruned)}" if pruned else "nothing to prune")


def _existing_checkpoints(settings: Settings) -> Collection[str] | None:
    """The commits of checkpoints that exist; None if the ledger cannot be read."""
    try:
        with closing(Ledger(settings.state_dir)) as ledger:
            return {commit.id for commit in ledger.checkpoints()}
    except BackendUnavailable as error:
        logger.warning("Checkpoints that were deleted are listed, too: %s", error)
        return None


def _find(settings: Settings, name: str) -> StoredJournal:
    """The journal of a run: by its id, the beginning of it, or ``last``.

    Raises:
        UsageError: There is no such run, or more than one.
    """
    journals = Journals(settings.state_dir)
    found = journals.all()
    if name == LATEST and found:
        return found[-1]
    matching = [each for each in found if each.run_id.startswith((name, f"run-{name}"))]
    if len(matching) > 1 and not any(each.run_id == name for each in matching):
        ids = ", ".join(each.run_id for each in matching[:10])
        raise InputError(f"{len(matching)} runs begin with {name}: {ids}. Write more of the id.")
    return journals.of(matching[0].run_id if len(matching) == 1 else name)


def _changes(settings: Settings, options: SimpleNamespace) -> dict[str, Any]:
    """What replaces a recorded run's own: only limits that were given as options."""
    limits = ("max_seconds", "max_tokens", "max_usd")
    return {
        "instructions": options.instructions,
        "max_iterations": options.max_iterations,
        **{name: getattr(settings, name) for name in limits if getattr(options, name) is not None},
    }


def _format_runs(summaries: Sequence[runs.RunSummary]) -> str:
    if not summaries:
        return "no runs"
    rows = [("ID", "AGE", "STATE", "STEPS", "USD", "CHECKPOINTS", "MODEL", "TASK")]
    rows += [
        (
            each.id,
            format_age(each.started_at),
            each.state,
            str(each.steps),
            "-" if each.usd is None else f"{each.usd:.4f}",
            _format_numbers(each.checkpoints),
            each.model or "-",
            each.signature[:TASK_CHARS],
        )
        for each in summaries
    ]
    return format_table(rows)


def _format_numbers(numbers: Sequence[int]) -> str:
    """Format numbers as ranges: ``0-3,5``."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in ranges) or "-"


def _describe(record: runs.RunRecord) -> dict[str, Any]:
    """A run as JSON: its summary, its outputs and its steps."""
    return {
        **asdict(record.summary),
        "outputs": dict(record.result.outputs) if record.result else None,
        "steps": [asdict(step) for step in record.steps],
    }


def _format_record(record: runs.RunRecord) -> str:
    about, result = record.summary, record.result
    lines = [
        f"{about.id}: {about.state}, {format_age(about.started_at)} ago",
        f"Task: {about.signature}",
        f"Model: {about.model or 'unknown'}",
    ]
    if about.reason:
        lines.append(f"Why it ended: {about.reason}")
    if about.tokens is not None:
        money = "" if about.usd is None else f", {about.usd:.4f} USD"
        lines.append(f"Cost: {about.tokens:,} tokens{money}")
    if about.checkpoints:
        lines.append(f"Checkpoints: steps {_format_numbers(about.checkpoints)}")
    for step in record.steps:
        sign = "❌" if step.error else "✓"
        what = " ".join((step.reasoning or step.code).split())[:STEP_CHARS]
        lines.append(f"{sign} Step {step.number} ({step.seconds:.1f} s): {what}")
    if result and result.outputs:
        lines += ["", format_outputs(result.outputs)]
    return "\n".join(lines)


def _format_step(step: Step) -> str:
    parts = [f"Step {step.number}, {step.seconds:.1f} s", step.reasoning, step.code, step.output]
    return "\n\n".join(part.rstrip() for part in (*parts, step.error or "") if part)
