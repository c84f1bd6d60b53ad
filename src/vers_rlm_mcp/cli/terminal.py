"""Terminal output: live progress and remarks on standard error, results on standard output."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from .exit_codes import EXIT_INCOMPLETE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vers_rlm_mcp import runs
    from vers_rlm_mcp.settings import Settings
    from vers_rlm_mcp.values import Usage

PLAIN_SIGNS = str.maketrans(
    {
        **dict.fromkeys("🧠📼🩹🧾💬🌱🏆📥🔀⏪🚀🔄📸🗑⟳", "*"),
        "✅": "[ok]",
        "✓": "[ok]",
        "❌": "[no]",
        "⚠": "[!]",
        "↩": "<-",
        "→": "->",
        "≠": "!=",
        "💭": "#",
        "📝": ">",
        "📤": "<",
        "…": "...",
        "\N{VARIATION SELECTOR-16}": "",
    }
)
"""What replaces the signs of a progress line where the terminal's encoding lacks them."""

CONTROLS = dict.fromkeys((*range(9), *range(11, 32), *range(127, 160)), "\N{REPLACEMENT CHARACTER}")
"""Replaces the characters that could control the terminal; newlines and tabs are kept."""


def print_result(result: runs.RunResult, *, as_json: bool, quiet: bool = False) -> int:
    """Print remarks and outputs, and return the exit code."""
    _print_remarks(Console(stderr=True, quiet=quiet), result)
    if as_json:
        print_json(asdict(result))
    elif result.outputs:
        print(format_outputs(result.outputs))
    sys.stdout.flush()
    if problem := getattr(sys.stdout, "problem", None):
        print(
            f"vers-rlm-mcp: The outputs could not be written ({problem}). They stay on record: "
            f"`vers-rlm-mcp runs show {result.run_id}` prints them.",
            file=sys.stderr,
        )
    if result.status == "finished":
        return 0
    if quiet:  # otherwise, the progress has said so
        print(f"vers-rlm-mcp: The run is {result.status}: {result.reason}", file=sys.stderr)
    return EXIT_INCOMPLETE


def keywords(settings: Settings) -> dict[str, Any]:
    """The settings that are not defaults, by name, for `RLM` and `Machines`."""
    return {name: getattr(settings, name) for name in settings.model_fields_set}


def make_safe(text: str) -> Text:
    """Text from a model or a machine, safe to print."""
    return Text(text.translate(CONTROLS))


def make_printable(text: str) -> str:
    """Text from a model or a machine, for standard output; a file or a pipe gets it unchanged."""
    return text.translate(CONTROLS) if sys.stdout.isatty() else text


def print_safe(console: Console, text: str) -> None:
    """Print text from a model or a machine."""
    if not console.encoding.startswith("utf"):
        text = text.translate(PLAIN_SIGNS)
    console.print(make_safe(text), soft_wrap=True)


def print_json(value: object) -> None:
    """Print a value as JSON."""
    print(json.dumps(value, ensure_ascii=False, indent=2))


def _print_remarks(console: Console, result: runs.RunResult) -> None:
    used = result.usage
    money = "" if used.usd is None else f", {used.usd:.4f} USD"
    steps, calls = len(result.steps), result.sub_calls
    print_safe(
        console,
        f"{result.run_id}: {result.status} after {steps} step{'' if steps == 1 else 's'} in "
        f"{result.seconds:.1f} s, {format_tokens(used)} tokens{money}, {calls} "
        f"sub-call{'' if calls == 1 else 's'}. "
        f"Machine {result.machine_id} "
        f"{'is kept' if result.kept else 'was deleted'} ({result.backend}, isolation "
        f"{result.isolation}, fidelity {result.fidelity}).",
    )
    for each in result.files:
        print_safe(console, f"File: {each.name} ({each.size:,} bytes)")
    if result.verified:
        print_safe(console, f"Verified by: {result.verified}")
    for warning in result.warnings:
        print_safe(console, f"Warning: {warning}")


def format_outputs(outputs: Mapping[str, object]) -> str:
    """Format outputs as lines; texts as they are, other values as JSON."""
    return "\n".join(f"{name}: {format_value(value)}" for name, value in outputs.items())


def format_tokens(usage: Usage) -> str:
    """Format the tokens of calls to models; estimated ones say so."""
    return f"{'about ' if usage.estimated else ''}{usage.tokens:,}"


def format_value(value: object) -> str:
    """Format one output: a text as it is, another value as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def format_age(since: float) -> str:
    """Format the time elapsed since a timestamp, in its largest unit; 0 is an unknown time."""
    if not since:
        return "-"
    seconds = max(0.0, time.time() - since)
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"


def format_table(rows: Sequence[tuple[str, ...]]) -> str:
    """Format rows as aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
