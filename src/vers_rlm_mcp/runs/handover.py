"""Hands over the files of a run: they outlive its machines, beside its journal."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import anyio

from vers_rlm_mcp.errors import MachineError, PathRefused
from vers_rlm_mcp.machines import WORKSPACE, find_files
from vers_rlm_mcp.store import safe_names, written_whole

from .events import OutputFile

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pydantic import JsonValue

    from vers_rlm_mcp import rlm
    from vers_rlm_mcp.machines import FoundFile, Machine

OUT: Final = f"{WORKSPACE}/out"
"""Whatever a run leaves here is handed over."""

MOST_FILES: Final = 256
MOST_BYTES: Final = 1024 * 1024 * 1024
"""Files of one run that are handed over, and their bytes together."""

HAND_OVER_SECONDS: Final = 120.0
"""How long handing over may take after a run, whose own time may be used up."""


@dataclass(frozen=True, slots=True)
class HandedOver:
    """What was handed over, and sentences on what was not, or under another name."""

    files: tuple[OutputFile, ...] = ()
    warnings: tuple[str, ...] = ()


async def hand_over(
    machine: Machine,
    directory: Path,
    *,
    paths: Sequence[str],
    patterns: Sequence[str],
) -> HandedOver:
    """Copy a run's files out of its machine.

    One that cannot be copied costs no other; nor does any of them cost the run its outputs.

    Args:
        machine: The machine that is current at the end of the run.
        directory: Where they are kept.
        paths: The outputs that are files.
        patterns: Further files, besides those in `OUT`.
    """
    files: list[OutputFile] = []
    warnings: list[str] = []
    try:
        with anyio.move_on_after(HAND_OVER_SECONDS) as scope:
            found = await find_files(
                machine, paths=paths, directories=[OUT], patterns=patterns, most=MOST_FILES
            )
            if found.more:
                warnings.append(f"Only {MOST_FILES} files were handed over; there were more.")
            by_path = {each.path: each for each in found.files}
            names = safe_names(map(_name, by_path))
            left = MOST_BYTES
            for path, each in by_path.items():
                name = names[_name(path)]
                try:
                    size = await _copy(machine, each, directory / name, left)
                except (MachineError, PathRefused, OSError) as error:
                    warnings.append(f"{path!r} was not handed over: {error}")
                    continue
                left -= size
                files.append(OutputFile(name=name, path=path, size=size))
                if name != _name(path):
                    warnings.append(f"{path!r} was handed over as {name!r}.")
        if scope.cancelled_caught:
            warnings.append(f"Not all files could be handed over in {HAND_OVER_SECONDS:g} s.")
    except MachineError as error:
        warnings.append(f"Files could not be handed over: {error}")
    return HandedOver(tuple(files), tuple(warnings))


def name_files(
    signature: rlm.Signature, outputs: Mapping[str, JsonValue], files: Sequence[OutputFile]
) -> dict[str, JsonValue]:
    """The outputs, with the names of files that were handed over in place of their paths."""
    names = {each.path: each.name for each in files}

    def name(value: JsonValue) -> JsonValue:
        if isinstance(value, list):
            return [name(item) for item in value]
        path = (
            posixpath.normpath(posixpath.join(WORKSPACE, value)) if isinstance(value, str) else ""
        )
        return names.get(path, value)

    are_files = {field.name for field in signature.outputs if field.type.has_files}
    return {key: name(value) if key in are_files else value for key, value in outputs.items()}


async def _copy(machine: Machine, found: FoundFile, target: Path, most: int) -> int:
    if found.fault:
        raise PathRefused(f"{found.fault}.")
    size = 0
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    async with await machine.read(found.path) as stream:
        with written_whole(target, private=True) as file:
            async for chunk in stream:
                size += len(chunk)
                if size > most:
                    raise PathRefused(
                        f"it would exceed the {MOST_BYTES >> 20} MiB that a run may hand over."
                    )
                file.write(chunk)
    return size


def _name(path: str) -> str:
    """A file's path below `OUT` or the workspace, or all of it."""
    for directory in (OUT, WORKSPACE, "/"):
        if path.startswith(f"{directory.rstrip('/')}/"):
            return posixpath.relpath(path, directory)
    return path
