"""The variables of the cells: filled from files, listed, and saved for a copy of the disk."""

from __future__ import annotations

import codecs
import json
import marshal
import mmap
import os
import reprlib
import time
import types
from contextlib import suppress
from itertools import islice
from math import inf

from .workplace import ROOT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_LISTED = 1000
MAX_PREVIEW = 200
MAX_NAME = 80

LONG = 1024 * 1024
"""Characters or bytes from which on a text is saved in a file of its own."""

PIECE = 1024 * 1024
"""Characters or bytes that are written at a time."""

TEXTS = ".texts"
"""Ends the name of the directory of those files."""

SURROGATES = "surrogatepass"

MARKED_TOGETHER = 1000
"""Parts of a JSON value that are marshalled at a time."""


class Variables:
    """What cells have put into their namespace.

    Args:
        namespace: Of the cells.
        functions: What is in it besides variables.
        path: The file that they are saved in.
    """

    def __init__(self, namespace: dict[Any, Any], functions: dict[str, Any], path: str) -> None:
        self._namespace = namespace
        self._functions = functions
        self._path = path
        self._inputs: dict[str, _Input] = {}

    def names(self) -> list[str]:
        """The names of all variables, the oldest first."""
        return [
            name
            for name in self._namespace
            if isinstance(name, str) and name[:1] != "_" and name not in self._functions
        ]

    def load(self, name: str, path: str, form: str) -> None:
        """Make a variable of a file: a str (`text`), a JSON value (`json`) or bytes (`bytes`)."""
        path = ROOT + path
        value = self._namespace[name] = _read(path, form)
        self._inputs[name] = _Input(value, path, form)

    def listing(self) -> list[dict[str, Any]]:
        """Name, type, length, preview and digest of every variable."""
        from .digests import digest

        return [
            {
                "name": name[:MAX_NAME],
                "type": type(self._namespace[name]).__name__[:MAX_NAME],
                "length": _length(self._namespace[name]),
                "preview": _preview(self._namespace[name]),
                "digest": digest(self._namespace[name]),
            }
            for name in self.names()[:MAX_LISTED]
        ]

    def save(self, most: float = inf) -> dict[str, Any]:
        """Save variables of at most so many bytes; return which were kept, and why others were not.

        Unchanged inputs are not written: they are read from their files again. Long texts get files
        of their own, once, and are like inputs from then on.
        """
        from . import pickles

        names = self.names()
        disk = self._disk()
        self._inputs = {name: i for name, i in self._inputs.items() if self._holds(name, disk)}
        lost: dict[str, str] = {}
        for name in names:
            if name not in self._inputs and is_long(self._namespace[name]):
                try:
                    self._write_text(name, most)
                except Exception as error:  # noqa: BLE001 - the disk may be full, or the memory
                    lost[name] = pickles.describe(error)
        self._remove_old_texts()
        inputs = {name: (entry.path, entry.form) for name, entry in self._inputs.items()}
        most -= sum(entry.size for entry in self._inputs.values() if self._is_own(entry))
        values = {n: self._namespace[n] for n in names if n not in inputs and n not in lost}
        kept, unsaved = pickles.write(self._path, values, self._functions, inputs, most)
        return {"kept": [*inputs, *kept], "lost": {**lost, **unsaved}}

    def restore(self) -> dict[str, Any]:
        """Read back what `save` saved, if there is anything."""
        from . import pickles

        try:
            values, lost, inputs = pickles.read(self._path)
        except FileNotFoundError:
            return {"kept": [], "lost": {}}
        except Exception as error:  # noqa: BLE001 - the file may hold anything
            return {"kept": [], "lost": {"(all variables)": pickles.describe(error)}}
        self._namespace.update(values)
        for name, (path, form) in inputs.items():
            try:
                values[name] = self._namespace[name] = _read(path, form)
                self._inputs[name] = _Input(values[name], path, form)
            except (OSError, ValueError) as error:
                lost[name] = pickles.describe(error)
        return {"kept": list(values), "lost": lost}

    def _write_text(self, name: str, most: float) -> None:
        """Write a long text or bytes into a file, in pieces; a copy of it might not fit."""
        from .pickles import TOO_LARGE

        value: Any = self._namespace[name]
        size = len(value)
        taken = sum(entry.size for entry in self._inputs.values() if self._is_own(entry))
        if taken + size > most:
            raise OverflowError(TOO_LARGE)
        directory = self._path + TEXTS
        os.makedirs(directory, exist_ok=True)
        path = os.path.join(directory, f"{time.time_ns()}")
        try:
            with open(path, "wb") as file:
                for start in range(0, size, PIECE):
                    piece: Any = value[start : start + PIECE]
                    is_text = type(value) is str
                    file.write(piece.encode("utf-8", SURROGATES) if is_text else piece)
                    if taken + file.tell() > most:
                        raise OverflowError(TOO_LARGE)
            form = "str" if type(value) is str else "bytes"
            self._inputs[name] = _Input(value, path, form)
        except BaseException:
            os.unlink(path)
            raise

    def _is_own(self, entry: _Input) -> bool:
        return entry.path.startswith(self._path + TEXTS)

    def _remove_old_texts(self) -> None:
        used = {os.path.basename(entry.path) for entry in self._inputs.values()}
        with suppress(OSError):  # there are none
            for name in os.listdir(self._path + TEXTS):
                if name not in used:
                    os.unlink(os.path.join(self._path + TEXTS, name))

    def _disk(self) -> int | None:
        """The device of files that copies carry. A directory in an overlay reports another."""
        probe = self._path + ".probe"
        try:
            os.makedirs(os.path.dirname(probe), exist_ok=True)
            with open(probe, "wb") as file:
                os.unlink(probe)
                return os.fstat(file.fileno()).st_dev
        except OSError:  # the disk is full
            return None

    def _holds(self, name: str, disk: int | None) -> bool:
        """Whether a copy of the machine will find the value of this input in its file."""
        entry = self._inputs[name]
        try:
            # The device is another one after each snapshot, of a file as of the disk.
            return (
                os.stat(entry.path).st_dev == disk
                and entry.state == _state(entry.path)
                and name in self._namespace
                and entry.is_value(self._namespace[name])
            )
        except OSError:
            return False


class _Input:
    """A variable that came from a file."""

    def __init__(self, value: Any, path: str, form: str) -> None:
        self.path = path
        self.form = form
        self.state = _state(path)
        self.size = self.state[0]
        self._mark = _mark(value)

    def is_value(self, value: Any) -> bool:
        """Whether this is the value that is in the file."""
        return self._mark is not None and _mark(value) == self._mark


def is_long(value: Any) -> bool:
    """Whether this is a text or bytes of its own length."""
    return type(value) in (str, bytes) and len(value) >= LONG


def _mark(value: Any) -> Any:
    """What tells a value from others, without holding it in memory; None if nothing does.

    Of a text, which cannot change, the hash is computed once. Of a JSON value all of it is looked
    at, since it may have changed.
    """
    if type(value) in (str, bytes):
        return id(value), len(value), hash(value)
    if type(value) not in (list, dict):
        return None
    parts: Any = iter(value if type(value) is list else value.items())  # pyright: ignore
    found = 0
    try:
        while piece := list(islice(parts, MARKED_TOGETHER)):  # pyright: ignore
            # In this version, equal values have equal bytes.
            found = hash((found, marshal.dumps(piece, 2)))  # pyright: ignore
    except (ValueError, MemoryError, RuntimeError):  # no plain data any more, or being changed
        return None
    return id(value), len(value), found  # pyright: ignore


def _state(path: str) -> tuple[int, int]:
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns


def _read(path: str, form: str) -> Any:
    """The value of a file, taking little more memory than the value itself."""
    with open(path, "rb") as file:
        if form == "bytes":
            return file.read()
        if os.fstat(file.fileno()).st_size == 0:
            text = ""
        else:
            with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
                errors = SURROGATES if form == "str" else "strict"
                text = codecs.utf_8_decode(view, errors)[0]  # pyright: ignore[reportArgumentType]
    return json.loads(text) if form == "json" else text


def _length(value: Any) -> int | None:
    try:
        return len(value)
    except Exception:  # noqa: BLE001 - the code of any class runs
        return None


_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = MAX_PREVIEW


def _preview(value: Any) -> str:
    if isinstance(value, types.ModuleType):
        return f"module {value.__name__}"[:MAX_PREVIEW]
    if isinstance(value, (str, bytes, bytearray)):
        value = value[:MAX_PREVIEW]
    return _short.repr(value)[:MAX_PREVIEW]
