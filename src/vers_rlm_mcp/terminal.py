"""What the command line does itself: run a task, and look after machines.

Progress and remarks go to standard error, results to standard output.
"""

from __future__ import annotations

import json
import time
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vers_rlm_mcp import rlm, runs
from vers_rlm_mcp.errors import InputError
from vers_rlm_mcp.models import open_model

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from pydantic import JsonValue

    from vers_rlm_mcp.models import Model
    from vers_rlm_mcp.settings import Settings

PARTIAL = 3
"""Exit code of a run that ended without all of its outputs."""

LINE_CHARS = 100
"""Characters of a running cell's last line that the status shows."""


async def run_in_terminal(options: argparse.Namespace, settings: Settings) -> int:
    """Run one task, with live progress; 0 when all outputs are there."""
    progress = Console(stderr=True)
    inputs, files = _inputs(options.input, rlm.Signature.parse(options.signature))
    async with AsyncExitStack() as stack:
        model = await _opened(stack, settings.model)
        sub_model = await _opened(stack, settings.sub_model or settings.model)
        named = {**files, **{path.name: str(path) for path in options.file}}
        # Whoever types the command may read what they name.
        opened = stack.enter_context(runs.opened_files(named, [Path("/")]))
        fleet = await stack.enter_async_context(runs.open_fleet(settings))
        await fleet.sweep()
        status = stack.enter_context(progress.status("Creating a machine"))

        def show(event: rlm.Event) -> None:
            if doing := _doing(event):
                status.update(Text(doing))
            if line := rlm.narrate(event):
                progress.print(Text(line))

        result = await runs.run(
            runs.RunRequest(
                signature=options.signature,
                inputs=inputs,
                instructions=options.instructions,
                max_iterations=options.max_iterations,
                max_llm_calls=options.max_llm_calls,
                machine_id=options.vm_id,
                keep_machine=options.keep_vm,
                files=opened,
            ),
            fleet=fleet,
            model=model,
            sub_model=sub_model,
            settings=settings,
            on_event=show,
        )
    _print_remarks(progress, result)
    print(_as_json(result) if options.json else _as_text(result))  # noqa: T201 - the result
    return PARTIAL if result.status == "partial" else 0


async def machines(action: str, ids: Sequence[str], settings: Settings) -> int:
    """List machines and commits, delete the given ones, or sweep those of dead servers."""
    async with runs.open_fleet(settings) as fleet:
        if action == "delete":
            if not ids:
                raise InputError("Name the machines to delete; `machines list` shows them.")
            for machine_id in ids:
                await fleet.delete(machine_id)
                print(f"deleted {machine_id}")  # noqa: T201 - the result
        elif action == "sweep":
            swept = await fleet.sweep()
            print(f"deleted {', '.join(swept)}" if swept else "nothing to sweep")  # noqa: T201
        else:
            _print_machines(await runs.inventory(fleet))
    return 0


async def _opened(stack: AsyncExitStack, name: str | None) -> Model:
    model = open_model(name)
    stack.push_async_callback(model.aclose)
    return model


def _inputs(
    given: Sequence[str], signature: rlm.Signature
) -> tuple[dict[str, JsonValue], dict[str, str]]:
    """Inputs by name: values, and the paths of those that are given as ``NAME=@PATH``."""
    texts = {field.name for field in signature.inputs if field.type.check(field.name, "")[1] == []}
    values: dict[str, JsonValue] = {}
    files: dict[str, str] = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not equals:
            raise InputError(f"--input {item!r}: write NAME=VALUE, or NAME=@PATH for a file.")
        if name in values or name in files:
            raise InputError(f"--input {name} is given twice.")
        if value.startswith("@") and name in texts:
            files[name] = value[1:]
        elif value.startswith("@"):
            values[name] = _parsed(name, Path(value[1:]).read_text())
        else:
            values[name] = value if name in texts else _parsed(name, value)
    return values, files


def _parsed(name: str, text: str) -> JsonValue:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(
            f"--input {name}: the signature wants no text here, and {text[:80]!r} is not JSON "
            f"({error})."
        ) from None


def _doing(event: rlm.Event) -> str | None:
    """What is going on, for the status line."""
    if isinstance(event, rlm.ModelAsked):
        return f"Step {event.step}: the model is thinking"
    if isinstance(event, rlm.CellStarted):
        return f"Step {event.step}: running its code"
    if isinstance(event, rlm.CellOutput) and (lines := event.text.strip().splitlines()):
        return f"Step {event.step}: {lines[-1][-LINE_CHARS:]}"
    return None


def _print_remarks(console: Console, result: runs.RunResult) -> None:
    used = result.usage
    money = "" if used.usd is None else f", {used.usd:.4f} USD"
    console.print(
        Text(
            f"{result.run_id}: {result.status} after {len(result.steps)} steps in "
            f"{result.seconds:.1f} s, {used.tokens:,} tokens{money}, {result.sub_calls} sub-calls. "
            f"{result.reason}\nMachine {result.machine_id} "
            f"{'is kept' if result.kept else 'was deleted'} ({result.backend}, isolation "
            f"{result.isolation}, fidelity {result.fidelity})."
        )
    )
    for warning in result.warnings:
        console.print(Text(f"Warning: {warning}"))


def _as_json(result: runs.RunResult) -> str:
    return json.dumps(asdict(result), ensure_ascii=False, indent=2)


def _as_text(result: runs.RunResult) -> str:
    return "\n".join(
        f"{name}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for name, value in result.outputs.items()
    )


def _print_machines(items: Sequence[runs.Item]) -> None:
    table = Table("ID", "AGE", "STATE", "FROM", "RUN", box=None)
    for item in items:
        age = f"{(time.time() - item.created_at) / 60:.0f} min"
        table.add_row(item.id, age, item.state, item.parent or "-", item.run or "-")
    Console().print(table if items else "no machines and no commits")
