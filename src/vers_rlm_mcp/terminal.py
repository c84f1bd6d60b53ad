"""What the command line does itself: run a task, and look after machines.

Progress and remarks go to standard error, results to standard output.
"""

from __future__ import annotations

import json
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from vers_rlm_mcp import rlm, runs
from vers_rlm_mcp.errors import InputError, PathRefused
from vers_rlm_mcp.models import open_model

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

    from pydantic import JsonValue

    from vers_rlm_mcp.machines import Fleet
    from vers_rlm_mcp.models import Model
    from vers_rlm_mcp.settings import Settings

PARTIAL = 3
"""Exit code of a run that ended without all of its outputs."""

LINE_CHARS = 100
"""Characters of a running cell's last line that the status shows."""

CONTROLS = dict.fromkeys((*range(9), *range(11, 32), *range(127, 160)), "\N{REPLACEMENT CHARACTER}")
"""What could give orders to the terminal: all control characters but newlines and tabs."""


async def run_in_terminal(options: argparse.Namespace, settings: Settings) -> int:
    """Run one task, with live progress; 0 when all outputs are there."""
    inputs, files = _inputs(options.input, rlm.Signature.parse(options.signature))
    async with AsyncExitStack() as stack:
        model = await opened_model(stack, settings.model)
        sub_model = await opened_model(stack, settings.sub_model or settings.model)
        # Whoever types the command may read what they name.
        opened = stack.enter_context(runs.opened_files(_named(files, options.file), [Path("/")]))
        fleet, show = await stack.enter_async_context(live(settings))
        result = await runs.run(
            _request(options, inputs, opened),
            fleet=fleet,
            model=model,
            sub_model=sub_model,
            settings=settings,
            on_event=show,
        )
    return print_result(result, as_json=options.json)


@asynccontextmanager
async def live(
    settings: Settings,
) -> AsyncGenerator[tuple[Fleet, Callable[[rlm.Event], None]]]:
    """Machines for a run that is watched here, and what shows its events as they happen."""
    progress = Console(stderr=True)
    async with runs.open_fleet(settings) as fleet:
        await fleet.sweep()
        with progress.status("Getting a machine ready") as status:

            def show(event: rlm.Event) -> None:
                if doing := _doing(event):
                    status.update(_safe(doing))
                if line := rlm.narrate(event):
                    _say(progress, line)

            yield fleet, show


def print_result(result: runs.RunResult, *, as_json: bool) -> int:
    """Print remarks and outputs, and return the exit code."""
    _print_remarks(Console(stderr=True), result)
    print(_as_json(result) if as_json else _as_text(result))  # noqa: T201 - the result
    return PARTIAL if result.status == "partial" else 0


async def machines(action: str, ids: Sequence[str], settings: Settings) -> int:
    """List machines and commits, delete or compare given ones, or sweep those of dead servers."""
    if action == "delete" and not ids:
        raise InputError("Name the machines and commits to delete; `machines list` shows them.")
    if action == "diff" and len(ids) != 2:
        raise InputError("Name two machines or commits to compare; `machines list` shows them.")
    if action in ("list", "sweep") and ids:
        raise InputError(f"`machines {action}` takes no ids.")
    async with runs.open_fleet(settings) as fleet:
        if action == "delete":
            await _delete(fleet, ids)
        elif action == "diff":
            bench = runs.Workbench(fleet, settings)
            print((await runs.compare(bench, *ids)).text)  # noqa: T201 - the result
            await bench.aclose()
        elif action == "sweep":
            swept = await fleet.sweep()
            print(f"deleted {', '.join(swept)}" if swept else "nothing to sweep")  # noqa: T201
        else:
            print(_as_table(await runs.inventory(fleet)))  # noqa: T201 - the result
    return 0


async def _delete(fleet: Fleet, ids: Sequence[str]) -> None:
    commits = {commit.id for commit in await fleet.commits()}
    for item in ids:
        await (fleet.delete_commit(item) if item in commits else fleet.delete(item))
        print(f"deleted {item}")  # noqa: T201 - the result


async def opened_model(stack: AsyncExitStack, name: str | None) -> Model:
    """The model of this name, for as long as the stack stands."""
    model = open_model(name)
    stack.push_async_callback(model.aclose)
    return model


def _request(
    options: argparse.Namespace, inputs: Mapping[str, JsonValue], files: Mapping[str, Path]
) -> runs.RunRequest:
    return runs.RunRequest(
        signature=options.signature,
        inputs=inputs,
        instructions=options.instructions,
        max_iterations=options.max_iterations,
        max_llm_calls=options.max_llm_calls,
        machine_id=options.vm_id,
        keep_machine=options.keep_vm,
        verify=options.verify,
        max_depth=options.max_depth,
        files=files,
    )


def _inputs(
    given: Sequence[str], signature: rlm.Signature
) -> tuple[dict[str, JsonValue], dict[str, Path]]:
    """Inputs by name: values, and the paths of texts that are given as ``NAME=@PATH``."""
    types = {field.name: field.type for field in signature.inputs}
    values: dict[str, JsonValue] = {}
    files: dict[str, Path] = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not equals:
            raise InputError(f"--input {item!r}: write NAME=VALUE, or NAME=@PATH for a file.")
        if name not in types:
            names = ", ".join(types) or "none"
            raise InputError(f"--input {name}: the signature has no such input, only: {names}.")
        if name in values or name in files:
            raise InputError(f"--input {name} is given twice.")
        is_text = not types[name].check(name, "")[1]
        if is_text and value.startswith("@"):
            files[name] = Path(value[1:])
        elif is_text:
            values[name] = value
        else:
            values[name] = _parsed(name, _content(value[1:]) if value.startswith("@") else value)
    return values, files


def _content(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise PathRefused(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise PathRefused(f"{path} cannot be read as text: {error}.") from None


def _parsed(name: str, text: str) -> JsonValue:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(
            f"--input {name}: the signature wants no text here, and {text[:80]!r} is not JSON "
            f"({error})."
        ) from None


def _named(inputs: Mapping[str, Path], files: Sequence[Path]) -> dict[str, str]:
    """The files by their names in the machine; those of inputs have the names of these."""
    named = {name: str(path) for name, path in inputs.items()}
    for path in files:
        if path.name in named:
            raise InputError(
                f"{named[path.name]} and {path} would both be called {path.name!r} in the machine; "
                "rename one."
            )
        named[path.name] = str(path)
    return named


def _doing(event: rlm.Event) -> str | None:
    """What is going on, for the status line."""
    if isinstance(event, rlm.ModelAsked):
        return f"Step {event.step}: the model is thinking"
    if isinstance(event, rlm.CellStarted):
        return f"Step {event.step}: running its code"
    if isinstance(event, rlm.CellOutput) and (lines := event.text.strip().splitlines()):
        return f"Step {event.step}: {lines[-1][-LINE_CHARS:]}"
    return None


def _safe(text: str) -> Text:
    """Text from a model or a machine, as the terminal may see it."""
    return Text(text.translate(CONTROLS))


def _say(console: Console, text: str) -> None:
    console.print(_safe(text), soft_wrap=True)


def _print_remarks(console: Console, result: runs.RunResult) -> None:
    used = result.usage
    money = "" if used.usd is None else f", {used.usd:.4f} USD"
    _say(
        console,
        f"{result.run_id}: {result.status} after {len(result.steps)} steps in "
        f"{result.seconds:.1f} s, {used.tokens:,} tokens{money}, {result.sub_calls} sub-calls. "
        f"{result.reason}\nMachine {result.machine_id} "
        f"{'is kept' if result.kept else 'was deleted'} ({result.backend}, isolation "
        f"{result.isolation}, fidelity {result.fidelity}).",
    )
    if result.verified:
        _say(console, f"Verified by: {result.verified}")
    for warning in result.warnings:
        _say(console, f"Warning: {warning}")


def _as_json(result: runs.RunResult) -> str:
    return json.dumps(asdict(result), ensure_ascii=False, indent=2)


def _as_text(result: runs.RunResult) -> str:
    return "\n".join(
        f"{name}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for name, value in result.outputs.items()
    )


def _as_table(items: Sequence[runs.Item]) -> str:
    if not items:
        return "no machines and no commits"
    rows = [
        (item.id, age(item.created_at), item.state, item.parent or "-", item.run or "-")
        for item in items
    ]
    return table([("ID", "AGE", "STATE", "FROM", "RUN"), *rows])


def age(since: float) -> str:
    """How long ago a time was, in minutes."""
    return f"{(time.time() - since) / 60:.0f} min"


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows with their columns below each other; the last one is as wide as it is."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
