"""The journal: a run on disk as it happens, one JSON line per event, appended and never rewritten.

It grows linearly in turns: an event holds what is new, and a text that is long is stored once,
beside the journal, under its hash. Layout of a run's directory, which is called by the run's id and
lies in `runs`, or in the directory there of the principal whose run it is:

    events.jsonl     one event a line: {"at": seconds since the epoch, "event": name, …}
    values/SHA256    long texts, by the hash of their UTF-8 bytes
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Self, cast

from vers_rlm_mcp.errors import UsageError
from vers_rlm_mcp.machines import unknown_handle

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from pydantic import JsonValue

    from vers_rlm_mcp.machines import Fleet
    from vers_rlm_mcp.settings import Settings

EVENTS = "events.jsonl"
VALUES = "values"
OF = "of-"
"""What the names of principals' own directories begin with."""

STORED = {"sha256", "chars", "preview"}
"""The fields that stand for a text which is stored beside the journal."""

INLINE_CHARS = 16_384
"""Longer texts go to a file of their own, so that a line can be read whole at any time."""

PREVIEW_CHARS = 200
"""How much of a text stored elsewhere is repeated in its place."""


@dataclass(frozen=True, slots=True)
class Records:
    """The runs on record in a state directory, as a principal sees them: its own; None sees all."""

    state_dir: Path
    principal: str | None = None

    @classmethod
    def seen_by(cls, fleet: Fleet, settings: Settings) -> Records:
        """Those that whoever uses this fleet may see."""
        return cls(settings.state_dir, fleet.principal)

    def new(self) -> Path:
        """Where to record a new run. Its name is the run's id."""
        return self._directory / f"run-{secrets.token_hex(8)}"

    def all(self) -> Sequence[Path]:
        """Where the runs are recorded, the one written last at the end."""
        journals = list(self._directory.glob(f"run-*/{EVENTS}"))
        if self.principal is None:
            journals += self._directory.glob(f"{OF}*/run-*/{EVENTS}")
        return [path.parent for path in sorted(journals, key=lambda path: path.stat().st_mtime)]

    def of(self, run_id: str) -> Path:
        """Where a run is recorded. Raises `UnknownHandle`."""
        known = {path.name: path for path in self.all()}
        if run_id not in known:
            raise unknown_handle("run", run_id, list(known))
        return known[run_id]

    @property
    def _directory(self) -> Path:
        runs = self.state_dir / "runs"
        return runs if self.principal is None else runs / f"{OF}{self.principal}"


def is_open(directory: Path) -> bool:
    """Whether a process is writing this run's journal, so that the run is under way."""
    with (directory / EVENTS).open() as file:
        return not _locked(file)


def read_events(directory: Path) -> Iterator[dict[str, Any]]:
    """The events of a run, with the texts that are stored beside them in their places.

    Lines that a crash cut short are left out.
    """
    with (directory / EVENTS).open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                yield expanded(cast("dict[str, Any]", event), directory)


def expanded(value: Any, directory: Path) -> Any:
    """What the `Journal` of a run was given, made from what it wrote."""
    if isinstance(value, list):
        return [expanded(item, directory) for item in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    fields = cast("dict[str, Any]", value)
    if fields.keys() == STORED and re.fullmatch("[0-9a-f]{64}", str(fields["sha256"])):
        with suppress(FileNotFoundError):  # then it is a value that looks like this
            return (
                (directory / VALUES / fields["sha256"])
                .read_bytes()
                .decode("utf-8", "surrogatepass")
            )
    return {key: expanded(item, directory) for key, item in fields.items()}


def _locked(file: IO[Any]) -> bool:
    """Lock an open file, until it is closed; False when another process has."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_cut(file: IO[str]) -> bool:
    """Whether the last line has no end."""
    with open(file.fileno(), "rb", closefd=False) as data:
        return (
            data.seek(0, os.SEEK_END) > 0 and os.pread(data.fileno(), 1, data.tell() - 1) != b"\n"
        )


class Journal:
    """Writes the events of one run under `directory`, which is made if it is missing.

    Each event is handed to the operating system before `append` returns, so that it outlives this
    process; a crash can at most cut the last line short. When it cannot be written any more, as on
    a full disk, `problem` says so, and the run goes on without it.
    """

    def __init__(self, directory: Path) -> None:
        """Open it, for this process alone.

        Raises:
            UsageError: Another process has it open, or it cannot be written there.
        """
        self.directory = directory
        self.run_id = directory.name
        self.problem: str | None = None
        """Why the rest of the run is missing, as a whole sentence."""
        self._values = directory / VALUES
        try:
            # Inputs, code and answers are the user's alone.
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._values.mkdir(exist_ok=True, mode=0o700)
            # A lone surrogate, which UTF-8 has no bytes for, becomes its escape in JSON.
            self._file = (directory / EVENTS).open(
                "a+", encoding="utf-8", errors="backslashreplace"
            )
        except OSError as error:
            raise UsageError(
                f"The run cannot be recorded in {directory}: {error.strerror}. Make room there, "
                "or choose another state directory (VERS_RLM_STATE_DIR)."
            ) from error
        if not _locked(self._file):
            self._file.close()
            raise UsageError(
                f"{directory.name} is under way in another process; wait for it, or end that one."
            )
        if _is_cut(self._file):
            self._file.write("\n")

    def append(self, event: Mapping[str, JsonValue]) -> None:
        """Write one event."""
        if self.problem:
            return
        try:
            line = {"at": round(time.time(), 3)} | {k: self._compact(v) for k, v in event.items()}
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError as error:
            self.problem = f"The journal {self.directory} breaks off: {error.strerror}."

    def _compact(self, value: JsonValue) -> JsonValue:
        if isinstance(value, str) and len(value) > INLINE_CHARS:
            return self._store(value)
        if isinstance(value, dict):
            return {key: self._compact(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._compact(item) for item in value]
        return value

    def _store(self, text: str) -> JsonValue:
        data = text.encode("utf-8", "surrogatepass")
        digest = hashlib.sha256(data).hexdigest()
        path = self._values / digest
        if not path.exists():
            path.write_bytes(data)
        return {"sha256": digest, "chars": len(text), "preview": text[:PREVIEW_CHARS]}

    def close(self) -> None:
        """Close the journal."""
        with suppress(OSError):  # what could not be written before
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
