"""Records of machines and commits: a small file for each, written before it is made.

The library cannot label a fork at the moment that it makes it.
"""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from ..base import Commit, MachineInfo, MachineSpec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PREFIX: Final = "vers-rlm-"
"""The prefix of names, so that people can tell ours from theirs in `msb list`."""

_NAME = re.compile(rf"{PREFIX}[0-9a-f]{{16}}")


def new_name() -> str:
    """A unique name."""
    return PREFIX + uuid.uuid4().hex[:16]


class Records:
    """The files of one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def write(self, record: MachineInfo | Commit) -> None:
        """Write a record atomically."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._path(record.id)
        unfinished = path.with_suffix(f".{uuid.uuid4().hex}")
        unfinished.write_text(json.dumps(asdict(record)))
        unfinished.replace(path)

    def delete(self, name: str) -> None:
        """Remove a record; one that is gone is no error."""
        if _NAME.fullmatch(name):
            self._path(name).unlink(missing_ok=True)

    def machines(self) -> Sequence[MachineInfo]:
        """The records of machines, oldest first."""
        return _by_age([_machine(data) for data in self._all()])

    def commits(self) -> Sequence[Commit]:
        """The records of commits, oldest first."""
        return _by_age([_commit(data) for data in self._all()])

    def _all(self) -> list[dict[str, Any]]:
        if not self._directory.is_dir():
            return []
        found: list[dict[str, Any]] = []
        for path in self._directory.glob("*.json"):
            try:
                found.append(json.loads(path.read_text()))
            except FileNotFoundError:  # deleted in the meantime
                continue
        return found

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.json"


def _machine(data: dict[str, Any]) -> MachineInfo:
    spec = MachineSpec(**data.pop("spec"))
    return MachineInfo(**data, spec=spec)


def _commit(data: dict[str, Any]) -> Commit:
    notes = tuple(data.pop("notes"))
    return Commit(**data, notes=notes)


def _by_age(records: list[Any]) -> Sequence[Any]:
    return sorted(records, key=lambda record: record.created_at)
