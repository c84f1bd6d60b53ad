"""Runs our guest program in a machine and reads what it found, which is not trusted."""

from __future__ import annotations

import json
import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vers_rlm_mcp.errors import MachineError

from ..code import guest_code, loader
from ..operations import run_command
from ..paths import WORKSPACE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..base import Machine

LISTING_BYTES: Final = 8 * 1024 * 1024
"""Bytes of a listing: room for a thousand of the longest paths."""

LISTING_SECONDS: Final = 30.0
"""How long a pattern may take to be matched."""


class FoundFile(BaseModel):
    """A file that was found, or a path with what is wrong with it."""

    model_config = ConfigDict(frozen=True, strict=True)

    path: str = Field(min_length=1)
    """Absolute, in the machine."""
    size: int = Field(default=0, ge=0)
    """In bytes, when it was looked at."""
    fault: str | None = None
    """Why it cannot be taken: there is none, or it is not a regular file."""


class _Listing(BaseModel):
    model_config = ConfigDict(strict=True)

    files: list[FoundFile]
    more: bool


@dataclass(frozen=True, slots=True)
class Found:
    """The files that were found, and whether there were more."""

    files: Sequence[FoundFile]
    more: bool


async def find_files(
    machine: Machine,
    *,
    paths: Sequence[str] = (),
    directories: Sequence[str] = (),
    patterns: Sequence[str] = (),
    most: int,
) -> Found:
    """Find regular files in a machine, without following links.

    Args:
        machine: Where to look.
        paths: Single files; each is in the result, in this order. Relative to the workspace.
        directories: Directories whose files, at any depth, are all meant.
        patterns: Patterns such as ``plots/*.png``, in which ``**`` stands for any directories.
        most: The number of files that are returned.

    Raises:
        MachineError: The machine cannot tell, for example because it has no Python.
    """
    options = {
        "paths": list(map(_relative, paths)),
        "directories": list(map(_relative, directories)),
        "patterns": list(map(_relative, patterns)),
        "most": most,
    }
    code = guest_code("listing")
    argv = ["python3", *loader("listing.guest.program", code), json.dumps(options)]
    result = await run_command(
        machine, argv, stdin=code, timeout=LISTING_SECONDS, limit=LISTING_BYTES
    )
    if result.status is None or not result.status.ok:
        raise MachineError(
            f"The files of machine {machine.id} could not be listed: "
            f"{result.stderr.text.strip()[-200:] or 'python3 did not end well there'}."
        )
    try:
        listing = _Listing.model_validate_json(result.stdout.text)
    except ValidationError:
        raise MachineError(f"Machine {machine.id} sent a listing of files that is none.") from None
    files = [
        each.model_copy(update={"path": posixpath.normpath(posixpath.join(WORKSPACE, each.path))})
        for each in listing.files[:most]
    ]
    return Found(files, listing.more or len(listing.files) > most)


def _relative(path: str) -> str:
    """A path in the workspace without it: the program's working directory is that."""
    return path.removeprefix(f"{WORKSPACE}/") or "."
