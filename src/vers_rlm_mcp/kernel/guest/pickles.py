"""Values of cells in a file: for a copy of the machine that takes only the disk along."""

from __future__ import annotations

import importlib
import io
import os
import pickle
import sys
import time
from contextlib import contextmanager, suppress
from math import inf

from .workplace import ROOT, here

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Generator

SAVE_SECONDS = 30.0
"""How long each of the two passes of saving may take: about what 10 GB of plain data take."""

SPARE_SIZE = 1024 * 1024
"""Bytes up to which a variable is also saved on its own, should all of them together not load."""

MAX_REASON = 300

TOO_LARGE = "it is too large to be saved with the others"

FLAT = (str, bytes, bytearray)
"""Types whose length is no more than the size of their pickles."""

ARCHIVE = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
"""The archive that this program runs from. It also holds cloudpickle."""


def write(
    path: str,
    values: dict[str, Any],
    functions: dict[str, Any],
    extra: dict[str, Any],
    most: float = inf,
) -> tuple[list[str], dict[str, str]]:
    """Write `values` to `path`; return which were kept, and why each of the others was not.

    Each is tried on its own, to find those that cannot be saved; the others are then written
    together, so that what they share stays shared. The file is complete, or there is none.

    Args:
        path: Of the file, which is replaced.
        values: By their names.
        functions: Saved by name: they exist wherever the file will be read.
        extra: Plain data that `read` returns.
        most: Bytes that all values may have together; a value that exceeds them is not kept.
    """
    pickler = _pickler(functions)
    sinks, lost = _try_each(values, pickler, most)
    scratch = path + ".new"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        while True:
            spare = {name: sink.data for name, sink in sinks.items() if sink.data is not None}
            header = {
                "directory": here(),
                "search": sys.path,
                "names": list(sinks),
                "spare": spare,
                "lost": lost,
                "extra": extra,
            }
            try:
                with open(scratch, "wb") as file:
                    pickle.dump(header, file)
                    out = _Timed(file, time.monotonic() + SAVE_SECONDS)
                    pickler(out).dump({name: values[name] for name in sinks})
                break
            except MemoryError as error:  # all together take more than each alone
                if not sinks:
                    raise
                largest = max(sinks, key=lambda name: sinks[name].size)
                del sinks[largest]
                lost[largest] = describe(error)
        os.replace(scratch, path)
    except Exception as error:  # noqa: BLE001 - the code of any class runs; the disk may be full
        for file in (scratch, path):  # an older one must not pass for this one
            with suppress(FileNotFoundError):
                os.unlink(file)
        return [], dict.fromkeys(values, describe(error))
    return list(sinks), lost


def read(path: str) -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
    """What `write` wrote: the values, why others are missing, and its `extra`.

    Also enters the directory and takes the module search path that cells had. Raises
    FileNotFoundError, and anything for a file that `write` did not write.
    """
    with open(path, "rb") as file:
        header = pickle.load(file)
        sys.path[:] = header["search"]
        with suppress(OSError):  # it may be gone; cells see where they are
            os.chdir(ROOT + header["directory"])
        with _archive_on_path():  # cloudpickle is imported where a value needs it
            try:
                values, lost = pickle.load(file), {}
            except Exception as error:  # noqa: BLE001 - the code of any class runs
                values, lost = _read_each(header, describe(error))
    return values, {**header["lost"], **lost}, header["extra"]


def describe(error: BaseException) -> str:
    """Why a variable is lost."""
    if isinstance(error, MemoryError):
        return "MemoryError: there is not enough memory to save it"
    return f"{type(error).__name__}: {error}"[:MAX_REASON]


def _try_each(
    values: dict[str, Any], pickler: Any, most: float
) -> tuple[dict[str, _Sink], dict[str, str]]:
    """What the pickles of the values that have one come to, and why others have none."""
    deadline = time.monotonic() + SAVE_SECONDS
    good: dict[str, _Sink] = {}
    lost: dict[str, str] = {}
    for name, value in values.items():
        sink = _Sink(most)
        try:
            if type(value) in FLAT and len(value) > most:  # pickling would copy it first
                raise OverflowError(TOO_LARGE)
            pickler(_Timed(sink, deadline)).dump(value)
            good[name] = sink
            most -= sink.size
        except Exception as error:  # noqa: BLE001 - the code of any class runs
            lost[name] = describe(error)
    return good, lost


def _read_each(header: dict[str, Any], reason: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The values that were also saved on their own, because all together do not load."""
    values: dict[str, Any] = {}
    lost: dict[str, str] = {}
    for name in header["names"]:
        try:
            values[name] = pickle.loads(header["spare"][name])
        except KeyError:
            lost[name] = reason
        except Exception as error:  # noqa: BLE001 - the code of any class runs
            lost[name] = describe(error)
    return values, lost


class _Timed:
    """Passes on what is written until the time is up."""

    def __init__(self, file: Any, deadline: float) -> None:
        self._file = file
        self._deadline = deadline

    def write(self, data: bytes) -> int:
        if time.monotonic() > self._deadline:
            raise TimeoutError(f"saving the variables took longer than {SAVE_SECONDS:g} s")
        return self._file.write(data)


class _Sink:
    """Accepts up to `most` bytes, and keeps them while they are few."""

    def __init__(self, most: float) -> None:
        self.data: bytes | None = b""
        self.size = 0
        self._most = most

    def write(self, data: bytes) -> int:
        self.size += len(data)
        if self.size > self._most:
            raise OverflowError(TOO_LARGE)
        if self.data is not None and len(self.data) + len(data) <= SPARE_SIZE:
            self.data += bytes(data)
        else:
            self.data = None
        return len(data)


def _pickler(functions: dict[str, Any]) -> Any:
    """A cloudpickle for what the namespace of the cells holds.

    A function of a cell is bound to the namespace it is read back into. Cloudpickle alone would
    give it a copy of the variables it uses, as is right for functions that travel alone.
    """
    names = {id(function): name for name, function in functions.items()}
    namespace = _namespace()

    base: Any = _cloudpickle().Pickler

    class Pickler(base):
        def reducer_override(self, obj: Any) -> Any:
            if id(obj) in names:
                return _function, (names[id(obj)],)
            if isinstance(obj, (io.TextIOWrapper, io.FileIO)):
                raise pickle.PicklingError("an open file cannot be saved")
            return base.reducer_override(self, obj)

        def _dynamic_function_reduce(self, func: Any) -> Any:
            reduced = base._dynamic_function_reduce(self, func)
            make, args, (attributes, slots), *rest = reduced
            if func.__globals__ is namespace:
                code, _, *others = args
                make, args = _make_in_namespace, (make, code, *others)
                slots = dict(slots, __globals__={})
            return (make, args, (attributes, slots), *rest)

    return Pickler


def _cloudpickle() -> Any:
    with _archive_on_path():
        return importlib.import_module("cloudpickle")


@contextmanager
def _archive_on_path() -> Generator[None, None, None]:
    sys.path.append(ARCHIVE)
    try:
        yield
    finally:
        sys.path.remove(ARCHIVE)


def _namespace() -> dict[str, Any]:
    return sys.modules["__main__"].__dict__


def _make_in_namespace(make: Any, code: Any, *rest: Any) -> Any:
    return make(code, _namespace(), *rest)


def _function(name: str) -> Any:
    return _namespace()[name]
