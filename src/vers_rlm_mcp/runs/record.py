"""The journal: a run on disk as it happens, one JSON line per event, appended and never rewritten.

It grows linearly in turns: an event holds what is new, and a text that is long is stored once,
beside the journal, under its hash. Layout of a run's directory:

    events.jsonl     one event a line: {"at": seconds since the epoch, "event": name, …}
    values/SHA256    long texts, by the hash of their UTF-8 bytes
"""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

    from pydantic import JsonValue

INLINE_CHARS = 16_384
"""Longer texts go to a file of their own, so that a line can be read whole at any time."""

PREVIEW_CHARS = 200
"""How much of a text stored elsewhere is repeated in its place."""


class Journal:
    """Writes the events of one run under `directory`, which is made if it is missing.

    Each event is handed to the operating system before `append` returns, so that it outlives this
    process; a crash can at most cut the last line short. When it cannot be written any more, as on
    a full disk, `problem` says so, and the run goes on without it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.problem: str | None = None
        """Why the rest of the run is missing, as a whole sentence."""
        self._values = directory / "values"
        # Inputs, code and answers are the user's alone.
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._values.mkdir(exist_ok=True, mode=0o700)
        # A lone surrogate, which UTF-8 has no bytes for, becomes its escape in JSON.
        self._file = (directory / "events.jsonl").open(
            "a", encoding="utf-8", errors="backslashreplace"
        )

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
