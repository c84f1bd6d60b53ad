"""Records of machines and commits: one small JSON file each."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Mapping  # noqa: TC003 - records are checked against their annotations
from dataclasses import asdict, dataclass, field
from functools import cache
from math import isfinite
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from vers_rlm_mcp.store import read_file, replace_file, set_aside

from ..base import Commit, MachineInfo, MachineSpec

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)

BACKEND: Final = "bubblewrap"
MACHINE_PREFIX: Final = "bw-"
COMMIT_PREFIX: Final = "bwc-"

ID_BYTES: Final = 6
"""Random bytes of an id: 48 bits cannot be guessed over any interface, and can still be typed."""

MAX_ID: Final = 64
"""Characters of an id that are looked up at all."""

MAX_RECORD: Final = 1 << 20
"""Bytes of a record. It names at most some hundred layers."""

AnyRecord = TypeVar("AnyRecord", "MachineRecord", "CommitRecord")


@dataclass(frozen=True, slots=True)
class MachineRecord:
    """The record of a machine."""

    id: str
    created_at: float
    parent: str | None
    labels: Mapping[str, str]
    spec: MachineSpec
    base: str
    layers: tuple[str, ...]
    """The frozen layers below what the machine writes now, newest first."""

    def info(self, *, running: bool) -> MachineInfo:
        """The same, as the interface has it."""
        return MachineInfo(
            id=self.id,
            backend=BACKEND,
            created_at=self.created_at,
            parent=self.parent,
            labels=dict(self.labels),
            spec=self.spec,
            running=running,
        )


@dataclass(frozen=True, slots=True)
class CommitRecord:
    """The record of a commit."""

    id: str
    machine_id: str
    created_at: float
    base: str
    spec: MachineSpec
    layers: tuple[str, ...]
    notes: tuple[str, ...] = field(default=())
    intent: str | None = None

    def commit(self) -> Commit:
        """The same, as the interface has it."""
        return Commit(
            id=self.id,
            machine_id=self.machine_id,
            created_at=self.created_at,
            fidelity="disk",
            notes=self.notes,
            intent=self.intent,
        )


def new_id(prefix: str = "") -> str:
    """A random id."""
    return prefix + secrets.token_hex(ID_BYTES)


def is_name(text: str) -> bool:
    """Whether this could be an id, and so is safe as a file name."""
    return text.replace("-", "").isalnum() and text.isascii() and len(text) <= MAX_ID


def write_record(path: Path, record: MachineRecord | CommitRecord) -> None:
    """Write a record so that a reader sees the old one or the new one, whole. Raises OSError."""
    replace_file(path, json.dumps(asdict(record)).encode())


def read_record(path: Path, name: str, kind: type[AnyRecord]) -> AnyRecord | None:
    """Read a record; None if there is none. One that cannot be read is set aside."""
    try:
        record = _parse(kind, name, read_file(path, MAX_RECORD))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        try:
            set_aside(path, why, f"`vers-rlm-mcp machines delete {name}` deletes what is left")
        except OSError as obstacle:
            logger.warning("%s cannot be read (%s), nor set aside (%s).", path, why, obstacle)
        return None
    return record


def _parse(kind: type[AnyRecord], name: str, data: bytes) -> AnyRecord:
    record = cast("AnyRecord", _adapter(kind).validate_json(data))
    if record.id != name:
        raise ValueError(f"it is the record of {record.id!r}")
    if not all(map(is_name, record.layers)):
        raise ValueError("it names layers by paths")
    if not isfinite(record.created_at):
        raise ValueError(f"it was made at {record.created_at}")
    return record


@cache
def _adapter(kind: type[MachineRecord | CommitRecord]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
