"""`vers-rlm-mcp run`: runs one task in the terminal, with live progress."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from vers_rlm_mcp import rlm, runs
from vers_rlm_mcp.errors import InputError, PathRefused

from .terminal import open_model_in, open_watched_fleet, print_result

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from pydantic import JsonValue

    from vers_rlm_mcp.settings import Settings


async def run_task(options: argparse.Namespace, settings: Settings) -> int:
    """Run one task, show live progress, and return the exit code."""
    inputs, files = _split_inputs(options.input, rlm.Signature.parse(options.signature))
    async with AsyncExitStack() as stack:
        model = await open_model_in(stack, settings.model)
        sub_model = await open_model_in(stack, settings.sub_model or settings.model)
        # No allow-list: the user at the terminal may read these files anyway.
        paths = _files_by_name(files, options.file)
        opened = stack.enter_context(runs.opened_files(paths, [Path("/")]))
        fleet, show = await stack.enter_async_context(open_watched_fleet(settings))
        result = await runs.run(
            _create_request(options, inputs, opened),
            fleet=fleet,
            model=model,
            sub_model=sub_model,
            settings=settings,
            on_event=show,
        )
    return print_result(result, as_json=options.json)


def _create_request(
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


def _split_inputs(
    given: Sequence[str], signature: rlm.Signature
) -> tuple[dict[str, JsonValue], dict[str, Path]]:
    """Split the inputs into values and paths of text files (``NAME=@PATH``), each by name."""
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
            text = _read_text(value[1:]) if value.startswith("@") else value
            values[name] = _parse_json(name, text)
    return values, files


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise PathRefused(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise PathRefused(f"{path} cannot be read as text: {error}.") from None


def _parse_json(name: str, text: str) -> JsonValue:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(
            f"--input {name}: the signature expects JSON, but {text[:80]!r} is not JSON ({error})."
        ) from None


def _files_by_name(inputs: Mapping[str, Path], files: Sequence[Path]) -> dict[str, str]:
    """Map names in the machine to host paths. An input's file is named after the input."""
    named = {name: str(path) for name, path in inputs.items()}
    for path in files:
        if path.name in named:
            raise InputError(
                f"{named[path.name]} and {path} would both be called {path.name!r} in the machine; "
                "rename one."
            )
        named[path.name] = str(path)
    return named
