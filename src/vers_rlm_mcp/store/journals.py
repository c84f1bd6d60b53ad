"""Journals of runs: one JSON line per event, appended as it happens and never rewritten.

A journal grows linearly in turns: an event holds what is new, and a long text is stored once,
beside the journal, under its hash. The directory of a run is named by the run's id and lies in
`runs`, or in the directory there of the principal that owns the run:

    events.jsonl     one event a line: {"at": seconds since the epoch, "event": name, …}
    values/SHA256    long texts, by the hash of their UTF-8 bytes
    files/NAME       files that the run handed over

To keep journals elsewhere, replace these three classes: no other module knows where a journal is.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Self, cast

from vers_rlm_mcp.errors import UsageError, unknown_handle

from .files import (
    LOCK_POLL_SECONDS,
    make_directory,
    open_private,
    read_file,
    set_aside,
    try_lock,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from pydantic import JsonValue

logger = logging.getLogger(__name__)

EVENTS = "events.jsonl"
VALUES = "values"
FILES = "files"
OF = "of-"
"""Prefix of the names of principals' own directories."""

STORED = {"sha256", "chars", "preview"}
"""The fields that stand for a text which is stored beside the journal."""

INLINE_CHARS = 16_384
"""Longer texts get a file of their own, so that a line can be read whole at any time."""

PREVIEW_CHARS = 200
"""How much of a text stored elsewhere is repeated in its place."""

LOCK_SECONDS = 1.0
"""How long opening a journal waits for others that only look whether it is open, which takes them
microseconds."""

MAX_LINE = 1 << 30
"""Bytes of a line or a stored text that are read."""

LATEST = 1e11
"""A time that is no event's: the year 5138, in seconds since the epoch."""

_reported: set[Path] = set()
"""The damaged journals that were logged."""

_KEY = b'"event": '
_STORED = b'"sha256": '
_HASH = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Journals:
    """The journals in a state directory that a principal may see: its own. None sees all."""

    state_dir: Path
    principal: str | None = None

    def new(self) -> Journal:
        """Open a journal for a new run. Raises `UsageError` if it cannot be written."""
        return Journal(self._directory / f"run-{secrets.token_hex(8)}")

    def all(self) -> Sequence[StoredJournal]:
        """Every journal; the one written last comes last.

        What is in the place of one and cannot be read as one is set aside.
        """
        files = list(self._directory.glob(f"run-*/{EVENTS}"))
        if self.principal is None:
            files += self._directory.glob(f"{OF}*/run-*/{EVENTS}")
        usable = [path for path in files if _is_usable(path)]
        return [StoredJournal(path.parent) for path in sorted(usable, key=_modified_at)]

    def of(self, run_id: str) -> StoredJournal:
        """The journal of a run. Raises `UnknownHandle`."""
        known = {journal.run_id: journal for journal in self.all()}
        if run_id not in known:
            raise unknown_handle("run", run_id, list(known))
        return known[run_id]

    @property
    def _directory(self) -> Path:
        runs = self.state_dir / "runs"
        return runs if self.principal is None else runs / f"{OF}{self.principal}"


@dataclass(frozen=True, slots=True)
class StoredJournal:
    """The journal of a run, to be read, continued or deleted."""

    directory: Path

    @property
    def run_id(self) -> str:
        """The run that it records."""
        return self.directory.name

    @property
    def updated_at(self) -> float:
        """When it was last written, in seconds since the epoch."""
        return _modified_at(self.directory / EVENTS)

    @property
    def size(self) -> int:
        """Its bytes, texts stored beside it included."""
        size = 0
        for path in self.directory.rglob("*"):
            with suppress(OSError):  # another process prunes, too
                size += path.lstat().st_size
        return size

    def is_open(self) -> bool:
        """Whether a process is writing it, so that its run is under way."""
        # Shared, so that two that look at once do not take each other for a writer.
        try:
            with (self.directory / EVENTS).open("rb") as file:
                return not try_lock(file.fileno(), fcntl.LOCK_SH)
        except OSError:  # it is being deleted
            return False

    def lines(
        self, kinds: Collection[str] = (), *, whole: bool = True
    ) -> Iterator[tuple[float, Mapping[str, Any]]]:
        """When each line was written, and what was given to `Journal.append`.

        Lines that cannot be read, such as one that a crash cut short, are left out, and logged.

        Args:
            kinds: Read only lines whose ``event`` is one of these. Empty for all.
            whole: Read texts stored beside the journal; otherwise their beginning is returned.
        """
        names = tuple(json.dumps(kind).encode() for kind in kinds)
        for number, data in enumerate(self._read_lines(), 1):
            if names and not _may_be(data, names):
                continue
            line = _parse(data)
            if line is None:
                if data.endswith(b"\n"):
                    _report(self.directory, f"line {number} cannot be read")
            elif not kinds or str(line.get("event")) in kinds:
                at = line.pop("at")
                try:
                    if _STORED in data:
                        line = cast("dict[str, Any]", self._expand(line, whole=whole))
                except RecursionError:
                    _report(self.directory, f"line {number} is nested too deep")
                else:
                    yield at, line

    def _read_lines(self) -> Iterator[bytes]:
        try:
            with (self.directory / EVENTS).open("rb") as file:
                while line := file.readline(MAX_LINE):
                    yield line
        except OSError as error:  # a damaged disk; or it is being deleted
            _report(self.directory, str(error))

    def file(self, name: str) -> Path:
        """Where a file that the run handed over is kept. Raises `UsageError` if there is none."""
        path = self.directory / FILES / name
        if not path.is_file() or not path.resolve().is_relative_to(self.directory.resolve()):
            raise UsageError(f"{self.run_id} handed over no file {name!r}: see `runs files`.")
        return path

    def append(self) -> Journal:
        """Open it to be continued. Raises `UsageError` if another process has it open."""
        return Journal(self.directory)

    def delete(self) -> None:
        """Delete it, with the texts beside it."""
        shutil.rmtree(self.directory)

    def _expand(self, value: Any, *, whole: bool) -> Any:
        if isinstance(value, list):
            return [self._expand(item, whole=whole) for item in cast("list[Any]", value)]
        if not isinstance(value, dict):
            return value
        fields = cast("dict[str, Any]", value)
        if fields.keys() == STORED and _HASH.fullmatch(str(fields["sha256"])):
            path = self.directory / VALUES / fields["sha256"]
            if not whole:
                return fields["preview"]
            try:
                return _read_value(path).decode("utf-8", "surrogatepass")
            except FileNotFoundError:
                pass  # it may be a value that looks like this
            except (OSError, ValueError) as error:
                _report(self.directory, f"{path.name} cannot be read: {error}")
        return {key: self._expand(item, whole=whole) for key, item in fields.items()}


class Journal:
    """Writes the events of one run under `directory`, which is made if it is missing.

    Each event is handed to the operating system before `append` returns, so that it outlives this
    process; a crash can at most cut the last line short. When no more can be written, as on a full
    disk, `problem` says so and the run continues without it.
    """

    def __init__(self, directory: Path) -> None:
        """Open it, for this process alone.

        Raises:
            UsageError: Another process has it open, or it cannot be written there.
        """
        self.run_id = directory.name
        self.problem: str | None = None
        """Why the rest of the run is missing, as a whole sentence."""
        self.files = directory / FILES
        """Where files that the run hands over are kept."""
        self._directory = directory
        self._values = directory / VALUES
        try:
            # Inputs, code and answers are the user's alone.
            make_directory(directory)
            make_directory(self._values)
            self._file = open(  # noqa: SIM115 - with this opener, until `close`
                directory / EVENTS,
                "a+",
                encoding="utf-8",
                errors="backslashreplace",  # a lone surrogate becomes its escape in JSON
                opener=open_private,
            )
        except OSError as error:
            raise UsageError(
                f"The run cannot be recorded in {directory}: {error.strerror}. Make room there, "
                "or choose another state directory (VERS_RLM_STATE_DIR)."
            ) from error
        if not _lock_for_writing(self._file):
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
        except (OSError, RecursionError) as error:
            self.problem = f"The journal {self._directory} breaks off: {error}."

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
        if not path.exists() or path.stat().st_size != len(data):
            with open(path, "wb", opener=open_private) as file:
                file.write(data)
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


def _lock_for_writing(file: IO[Any]) -> bool:
    """Lock an open file for this process alone; False if another one writes it."""
    deadline = time.monotonic() + LOCK_SECONDS
    while not try_lock(file.fileno(), fcntl.LOCK_EX):
        if not try_lock(file.fileno(), fcntl.LOCK_SH) or time.monotonic() > deadline:
            return False
        fcntl.flock(file, fcntl.LOCK_UN)  # those that have it locked only look
        time.sleep(LOCK_POLL_SECONDS)
    return True


def _is_cut(file: IO[str]) -> bool:
    """Whether the last line has no end."""
    with open(file.fileno(), "rb", closefd=False) as data:
        return (
            data.seek(0, os.SEEK_END) > 0 and os.pread(data.fileno(), 1, data.tell() - 1) != b"\n"
        )


def _may_be(line: bytes, names: tuple[bytes, ...]) -> bool:
    """Whether the ``event`` of a line may have one of these names, given as JSON.

    It does not parse the line, since most lines are not wanted.
    """
    at = line.find(_KEY)
    while at >= 0:
        if line.startswith(names, at + len(_KEY)):
            return True
        if line.count(b"{", 0, at) == 1:
            return False  # this is the line's own key, not one of an object in it
        at = line.find(_KEY, at + len(_KEY))
    return False


def _parse(line: bytes) -> dict[str, Any] | None:
    """The object in a line; None unless it tells when it was written."""
    try:
        value = json.loads(line.decode(errors="replace"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    at = cast("dict[str, Any]", value).get("at")
    if not isinstance(at, int | float) or not 0 <= at < LATEST:  # which NaN is not either
        return None
    return cast("dict[str, Any]", value)


def _report(directory: Path, fault: str) -> None:
    """Log, once, that a journal is not whole."""
    if directory not in _reported:
        _reported.add(directory)
        logger.warning(
            "The journal %s is damaged (%s). What can be read is used, and the rest left out.",
            directory,
            fault,
        )


def _read_value(path: Path) -> bytes:
    """The bytes of a text stored beside a journal. Raises OSError, and ValueError if damaged."""
    data = read_file(path, MAX_LINE)
    if hashlib.sha256(data).hexdigest() != path.name:
        raise ValueError("its content is not what was stored")
    return data


def _is_usable(path: Path) -> bool:
    """Whether the events of a run can be read; something else in their place is set aside."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            set_aside(path, "it is not a regular file")
            return False
    except OSError:  # a link to nothing, or being deleted
        return False
    if os.access(path, os.R_OK):
        return True
    _report(path.parent, "it may not be read")
    return False


def _modified_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # it is being deleted
        return 0.0
