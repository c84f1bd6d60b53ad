"""`vers-rlm-mcp run`: runs one task in the terminal, with live progress."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vers_rlm_mcp import RLM, rlm, runs
from vers_rlm_mcp.errors import InputError, PathRefused
from vers_rlm_mcp.store import Journals

from .live_view import watch
from .save_files import save_files
from .terminal import keywords, print_result

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import SimpleNamespace

    from pydantic import JsonValue

    from vers_rlm_mcp.settings import Settings

MOST_PIPED_BYTES = 64 * 1024 * 1024
"""Bytes of an input from a pipe, which is held in memory; a file may have any size."""


async def run_task(settings: Settings, options: SimpleNamespace) -> int:
    """Run one task, show live progress, and return the exit code."""
    inputs = _read_inputs(options.inputs, rlm.Signature.parse(options.signature))
    request = _read_options(options)
    if both := inputs.keys() & request.keys():
        raise InputError(f"{', '.join(both)}: rename the input; it is the name of an option, too.")
    async with RLM(**keywords(settings)) as engine:
        run = engine(options.signature.strip(), **inputs, **request)
        result = await watch(run, settings, quiet=options.quiet)
    status = print_result(result, as_json=options.as_json, quiet=options.quiet)
    journal = Journals(settings.state_dir).of(result.run_id)
    return max(status, save_files(journal, result.files, options)) if options.out else status


def _read_options(options: SimpleNamespace) -> dict[str, Any]:
    """The options of the run that were given, as `RLM` takes them."""
    named = {
        "instructions": options.instructions,
        "max_iterations": options.max_iterations,
        "max_llm_calls": options.max_llm_calls,
        "verify": options.verify,
        "output_files": options.output_files or None,
        "max_depth": options.max_depth,
        "machine_id": options.vm_id,
        "keep_machine": options.keep_vm or None,
        "files": _select_files(options.files, quiet=options.quiet) or None,
    }
    return {name: value for name, value in named.items() if value is not None}


def _read_inputs(items: Sequence[str], signature: rlm.Signature) -> dict[str, JsonValue | Path]:
    """The value of each input by name; the path of a file for a text that is read from one."""
    types = {field.name: field.type for field in signature.inputs}
    values: dict[str, JsonValue | Path] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals:
            raise InputError(f"--input {item!r}: write NAME=VALUE, or NAME=@PATH for a file.")
        if name not in types:
            names = ", ".join(types) or "none"
            raise InputError(f"--input {name}: the signature has no such input, only: {names}.")
        if name in values:
            raise InputError(f"--input {name} is given twice.")
        is_text = not types[name].check(name, "")[1]
        if value.startswith("@") and not value.startswith("@@"):
            path = value[1:]
            values[name] = (
                Path(path).expanduser()
                if is_text and path != "-" and not _is_pipe(path)
                else _parse(name, _read_text(path), is_text=is_text)
            )
        else:
            text = value[1:] if value.startswith("@@") else value
            values[name] = _parse(name, text, is_text=is_text)
    return values


def _is_pipe(path: str) -> bool:
    """Whether a path is a pipe, such as ``<(command)``, or a terminal: read once, in order."""
    place = Path(path).expanduser()
    return place.exists() and not place.is_file() and not place.is_dir()


def _read_text(path: str) -> str:
    try:
        if path == "-":
            data = sys.stdin.buffer.read(MOST_PIPED_BYTES + 1)
        else:
            with Path(path).expanduser().open("rb") as file:
                data = file.read(MOST_PIPED_BYTES + 1)
        if len(data) > MOST_PIPED_BYTES:
            raise PathRefused(f"{path} is longer than {MOST_PIPED_BYTES >> 20} MiB: use a file.")
        return data.decode()
    except OSError as error:
        raise PathRefused(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise PathRefused(f"{path} cannot be read as text: {error}.") from None


def _parse(name: str, text: str, *, is_text: bool) -> JsonValue:
    if is_text:
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"--input {name}: the signature expects JSON, but {text[:80]!r} is not JSON ({error})."
        ) from None


def _select_files(items: Sequence[str], *, quiet: bool) -> dict[str, str]:
    """The files that ``[NAME=]PATH`` stand for, by their names in the machine; told to the user."""
    named: list[str | tuple[str, str]] = []
    for item in items:
        name, equals, path = item.partition("=")
        is_named = equals and "/" not in name and not Path(item).exists()
        named.append((name, path) if is_named else item)
    selection = runs.select_files(named, [Path("/")])  # the user may read these files anyway
    if selection.files and not quiet:
        size = sum(path.stat().st_size for path in selection.files.values() if path.is_file())
        count = len(selection.files)
        print(f"Taking {count:,} file{'' if count == 1 else 's'}, {size:,} bytes.", file=sys.stderr)
        print(*selection.notes, sep="\n", end="\n" if selection.notes else "", file=sys.stderr)
    return {name: str(path) for name, path in selection.files.items()}
