"""The variables of the cells: filled from files, listed, and saved for a copy of the disk."""

from __future__ import annotations

import codecs
import json
import mmap
import os
import reprlib
import types
from math import inf

from .workplace import ROOT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_LISTED = 1000
MAX_PREVIEW = 200
MAX_NAME = 80


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
        if form != "json":  # a JSON value may be changed, and then is not what is in the file
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

        Unchanged inputs are not written: they are read from their files again.
        """
        from . import pickles

        disk = self._disk() if self._inputs else None
        inputs = {
            name: (i.path, i.form) for name, i in self._inputs.items() if self._holds(name, disk)
        }
        values = {name: self._namespace[name] for name in self.names() if name not in inputs}
        kept, lost = pickles.write(self._path, values, self._functions, inputs, most)
        return {"kept": [*inputs, *kept], "lost": lost}

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
            return (
                entry.disk == disk
                and entry.state == _state(entry.path)
                and self._namespace.get(name) is entry.value
            )
        except OSError:
            return False


class _Input:
    """A variable that came from a file."""

    def __init__(self, value: Any, path: str, form: str) -> None:
        self.value = value
        self.path = path
        self.form = form
        self.state = _state(path)
        self.disk = os.stat(path).st_dev


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
                text = codecs.utf_8_decode(view)[0]  # pyright: ignore[reportArgumentType]
    return text if form == "text" else json.loads(text)


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
