"""Terminal output: live progress and remarks on standard error, results on standard output."""

from __future__ import annotations

import json
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from vers_rlm_mcp import rlm, runs
from vers_rlm_mcp.machines import open_fleet
from vers_rlm_mcp.models import open_model

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from vers_rlm_mcp.machines import Fleet
    from vers_rlm_mcp.models import Model
    from vers_rlm_mcp.settings import Settings

PARTIAL = 3
"""Exit code of a run that ended without all of its outputs."""

LINE_CHARS = 100
"""Length to which the status line cuts a running cell's last line."""

CONTROLS = dict.fromkeys((*range(9), *range(11, 32), *range(127, 160)), "\N{REPLACEMENT CHARACTER}")
"""Replaces the characters that could control the terminal; newlines and tabs are kept."""


@asynccontextmanager
async def open_watched_fleet(
    settings: Settings,
) -> AsyncGenerator[tuple[Fleet, Callable[[rlm.Event], None]]]:
    """Open the fleet for a run, and provide the callback that shows the run's events."""
    progress = Console(stderr=True)
    async with open_fleet(settings) as fleet:
        await fleet.sweep()
        with progress.status("Getting a machine ready") as status:

            def show(event: rlm.Event) -> None:
                if text := _status_text(event):
                    status.update(_safe(text))
                if line := runs.narrate(event):
                    _print(progress, line)

            yield fleet, show


def print_result(result: runs.RunResult, *, as_json: bool) -> int:
    """Print remarks and outputs, and return the exit code."""
    _print_remarks(Console(stderr=True), result)
    print(_format_json(result) if as_json else _format_outputs(result))
    return PARTIAL if result.status == "partial" else 0


async def open_model_in(stack: AsyncExitStack, name: str | None) -> Model:
    """Open a model that the stack closes."""
    model = open_model(name)
    stack.push_async_callback(model.aclose)
    return model


def _status_text(event: rlm.Event) -> str | None:
    """Text for the status line, if the event changes it."""
    if isinstance(event, runs.events.ModelAsked):
        return f"Step {event.step}: the model is thinking"
    if isinstance(event, runs.events.CellStarted):
        return f"Step {event.step}: running its code"
    if isinstance(event, runs.events.CellOutput) and (lines := event.text.strip().splitlines()):
        return f"Step {event.step}: {lines[-1][-LINE_CHARS:]}"
    return None


def _safe(text: str) -> Text:
    """Text from a model or a machine, safe to print."""
    return Text(text.translate(CONTROLS))


def _print(console: Console, text: str) -> None:
    console.print(_safe(text), soft_wrap=True)


def _print_remarks(console: Console, result: runs.RunResult) -> None:
    used = result.usage
    money = "" if used.usd is None else f", {used.usd:.4f} USD"
    _print(
        console,
        f"{result.run_id}: {result.status} after {len(result.steps)} steps in "
        f"{result.seconds:.1f} s, {used.tokens:,} tokens{money}, {result.sub_calls} sub-calls. "
        f"{result.reason}\nMachine {result.machine_id} "
        f"{'is kept' if result.kept else 'was deleted'} ({result.backend}, isolation "
        f"{result.isolation}, fidelity {result.fidelity}).",
    )
    if result.verified:
        _print(console, f"Verified by: {result.verified}")
    for warning in result.warnings:
        _print(console, f"Warning: {warning}")


def _format_json(result: runs.RunResult) -> str:
    return json.dumps(asdict(result), ensure_ascii=False, indent=2)


def _format_outputs(result: runs.RunResult) -> str:
    return "\n".join(
        f"{name}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for name, value in result.outputs.items()
    )


def format_age(since: float) -> str:
    """Format the time elapsed since a timestamp, in minutes."""
    return f"{(time.time() - since) / 60:.0f} min"


def format_table(rows: Sequence[tuple[str, ...]]) -> str:
    """Format rows as aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
