"""Copies a run's inputs and files into its machine, and describes them for the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from anyio import to_thread

from vers_rlm_mcp import rlm
from vers_rlm_mcp.errors import InputError
from vers_rlm_mcp.machines import Machine, upload

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import JsonValue

    from vers_rlm_mcp.kernel import Kernel

FILES = "/workspace/files"
"""Where a run's files lie in the machine."""

INPUTS = "/workspace/.vers-rlm/inputs"
"""Where inputs are handed to the kernel."""

RECORDED_CHARS = 1024 * 1024
"""Characters of all inputs together that go into a run's record; checkpoints have the others."""

PREVIEW_BYTES = 4 * rlm.PREVIEW_CHARS
"""Enough bytes from either end of a file for a whole preview, at most 4 for a character."""


def check_inputs(
    signature: rlm.Signature, inputs: Mapping[str, JsonValue], files: Mapping[str, Path]
) -> dict[str, JsonValue | Path]:
    """The value of every input of a signature; a path where a file of its name was given.

    Raises:
        InputError: They do not fit the signature.
    """
    names = {field.name for field in signature.inputs}
    from_files = {name: path for name, path in files.items() if name in names}
    if both := from_files.keys() & inputs.keys():
        raise InputError(
            f"Given both as an input and as a file: {', '.join(sorted(both))}. Leave one out."
        )
    try:
        checked = signature.check_inputs({**inputs, **dict.fromkeys(from_files, "")})
    except InputError as error:
        if not from_files:
            raise
        raise InputError(f"{error} (A file can be the value of an input of type str.)") from error
    return {**checked, **from_files}


def recordable(inputs: Mapping[str, JsonValue | Path]) -> dict[str, JsonValue] | None:
    """The inputs as they go into the record; None where that would be too much, or a file's."""
    values = {name: value for name, value in inputs.items() if not isinstance(value, Path)}
    texts = sum(len(value) for value in values.values() if isinstance(value, str))
    if len(values) < len(inputs) or texts > RECORDED_CHARS:
        return None
    return values if len(json.dumps(values)) <= RECORDED_CHARS else None


async def bring_in(
    machine: Machine,
    kernel: Kernel,
    inputs: Mapping[str, JsonValue | Path],
    files: Mapping[str, Path],
) -> tuple[tuple[rlm.InputVariable, ...], tuple[rlm.InputFile, ...]]:
    """Put inputs into the kernel's variables and files into the machine.

    Everything goes over as a file, a chunk at a time where it comes from one: a large input passes
    the host's memory at most once, a file never.
    """
    variables = [
        await _from_file(machine, kernel, name, value)
        if isinstance(value, Path)
        else await _from_value(machine, kernel, name, value)
        for name, value in inputs.items()
    ]
    brought = [
        rlm.InputFile(f"{FILES}/{name}", await upload(machine, path, f"{FILES}/{name}"))
        for name, path in files.items()
        if name not in inputs
    ]
    return tuple(variables), tuple(brought)


async def _from_value(
    machine: Machine, kernel: Kernel, name: str, value: JsonValue
) -> rlm.InputVariable:
    data, kind, encoded = _encode(value)
    path = f"{INPUTS}/{name}"
    await machine.write(path, data)
    await kernel.load(name, path, kind)
    return rlm.describe(name, value, encoded=encoded)


def _encode(value: JsonValue) -> tuple[bytes, Literal["text", "json"], str | None]:
    if isinstance(value, str):
        return value.encode(), "text", None
    text = json.dumps(value)
    return text.encode(), "json", text


async def _from_file(
    machine: Machine, kernel: Kernel, name: str, source: Path
) -> rlm.InputVariable:
    path = f"{INPUTS}/{name}"
    size = await upload(machine, source, path)
    await kernel.load(name, path, "text")
    shown = await to_thread.run_sync(_preview, source, size)
    return rlm.InputVariable(name=name, type="str", size=f"{size:,} bytes of UTF-8", preview=shown)


def _preview(source: Path, size: int) -> str:
    with source.open("rb") as file:
        if size <= 2 * PREVIEW_BYTES:
            return rlm.preview(file.read().decode(errors="replace"))
        half = rlm.PREVIEW_CHARS // 2
        head = file.read(PREVIEW_BYTES).decode(errors="replace")[:half]
        file.seek(size - PREVIEW_BYTES)
        tail = file.read().decode(errors="replace")[-half:]
    return f"{head}\n… the middle of {size:,} bytes is left out …\n{tail}"
