"""Frames from the guest, checked: every value gets its type here, or the guest broke the protocol.

All functions raise `WireError` for anything that our own kernel would not send.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeGuard, cast, get_args

from vers_rlm_mcp.errors import KernelError, WireError
from vers_rlm_mcp.values import MAX_DEPTH, CellStatus, Final, is_too_deep

from .base import Carried, HostCall, Variable
from .guest.frames import MAX_CALL_VALUES, PROTOCOL
from .wire import MAX_VALUES, Frame, FrameError, load

if TYPE_CHECKING:
    from pydantic import JsonValue

MAX_NAME = 256
MAX_TEXT = 64 * 1024
"""Characters of an error or a reason; the guest cuts them much shorter."""

MAX_COUNT = 2**62
"""No count of bytes or values is larger, and every integer below fits any store."""

_CARRY_PATHS = frozenset({"exec", "readFile", "writeFile"})
"""Calls whose text may hold bytes that are not UTF-8, as surrogates, because it names files."""

Ending = Literal["ok", "error", "final", "interrupted"]


class Refused(KernelError):
    """The kernel could not do what it was asked to do; the text says why."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The kernel's answer to an attachment."""

    kernel: str
    cells: int
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Done:
    """How a cell ended; see `CellResult`."""

    status: CellStatus
    _: KW_ONLY
    error: str | None = None
    final: Final | None = None
    names: tuple[str, ...] = ()
    """The variables that there are now."""


def parse_ready(frame: Frame) -> Ready:
    """The answer to ``hello``."""
    if frame.kind != "ready" or integer(frame, "protocol") != PROTOCOL:
        raise WireError(
            f"The kernel in this machine does not speak protocol {PROTOCOL}: another version of "
            "this program started it. Use a new machine."
        )
    names = _names(_load(frame))
    return Ready(_text(frame.fields.get("kernel"), MAX_NAME), integer(frame, "cells"), names)


def parse_done(frame: Frame) -> Done:
    """The end of a cell, from its `done` frame."""
    if not _flag(frame, "ok"):
        return Done("error", error=_error_text(frame))
    value = _object(_load(frame))
    status = value.get("status")
    if status not in get_args(Ending):
        raise _violation("a status that does not exist")
    final = None if value.get("final") is None else _final(_object(value["final"]))
    if (status == "final") != (final is not None):
        raise _violation("a final status without a value, or the reverse")
    error = None if value.get("error") is None else _text(value["error"], MAX_TEXT)
    names = _names(value.get("names"))
    return Done(cast("Ending", status), error=error, final=final, names=names)


def parse_answer(frame: Frame, request: int) -> JsonValue:
    """The value of another request's `done` frame. Raises `Refused` if it reports a failure."""
    if frame.kind != "done" or integer(frame, "id") != request:
        raise _violation(f"a frame of kind {frame.kind!r} where an answer was due")
    if not _flag(frame, "ok"):
        raise Refused(_error_text(frame))
    return _load(frame)


def parse_call(frame: Frame) -> HostCall:
    """The call in a `call` frame."""
    name = _text(frame.fields.get("name"), MAX_NAME)
    value = _object(_load(frame, most=MAX_CALL_VALUES, surrogates=name in _CARRY_PATHS))
    carried = value.get("carried")
    return HostCall(
        name,
        _object(value.get("arguments")),
        None if carried is None else parse_carried(carried),
    )


def parse_carried(value: JsonValue) -> Carried:
    """Which variables were saved or restored."""
    fields = _object(value)
    lost = _object(fields.get("lost"))
    reasons = {_text(name, MAX_NAME): _text(reason, MAX_TEXT) for name, reason in lost.items()}
    return Carried(_names(fields.get("kept")), reasons)


def parse_variables(value: JsonValue) -> tuple[Variable, ...]:
    """The listing of the variables."""
    return tuple(_variable(_object(item)) for item in _list(value))


def integer(frame: Frame, name: str) -> int:
    """A field of a header that is a count or an id."""
    value = frame.fields.get(name)
    if not _is_count(value):
        raise _violation(f"no valid {name!r} in a frame of kind {frame.kind!r}")
    return value


def _error_text(frame: Frame) -> str:
    return frame.payload[:MAX_TEXT].decode(errors="replace")


def _variable(item: dict[str, JsonValue]) -> Variable:
    length = item.get("length")
    if length is not None and not _is_count(length):
        raise _violation("a length that is not one")
    digest = item.get("digest")
    return Variable(
        _text(item.get("name"), MAX_NAME),
        _text(item.get("type"), MAX_NAME),
        length,
        _text(item.get("preview"), MAX_TEXT),
        None if digest is None else _text(digest, MAX_NAME),
    )


def _final(value: dict[str, JsonValue]) -> Final:
    return Final(_list(value.get("args")), _object(value.get("kwargs")))


def _load(frame: Frame, *, most: int = MAX_VALUES, surrogates: bool = False) -> JsonValue:
    try:
        value = load(frame.payload, most=most, surrogates=surrogates)
    except FrameError as error:
        raise _violation(str(error)) from None
    if is_too_deep(value):
        raise _violation(f"a value that is nested deeper than {MAX_DEPTH} levels")
    return value


def _names(value: Any) -> tuple[str, ...]:
    return tuple(_text(name, MAX_NAME) for name in _list(value))


def _text(value: Any, longest: int) -> str:
    if not isinstance(value, str) or len(value) > longest:
        raise _violation(f"something else where a text of at most {longest} characters belongs")
    return value


def _list(value: Any) -> list[JsonValue]:
    if not isinstance(value, list):
        raise _violation("something else where a list belongs")
    return cast("list[JsonValue]", value)


def _object(value: Any) -> dict[str, JsonValue]:
    if not isinstance(value, dict):
        raise _violation("something else where an object belongs")
    return cast("dict[str, JsonValue]", value)


def _flag(frame: Frame, name: str) -> bool:
    value = frame.fields.get(name)
    if not isinstance(value, bool):
        raise _violation(f"no valid {name!r} in a frame of kind {frame.kind!r}")
    return value


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT


def _violation(what: str) -> WireError:
    return WireError(f"The kernel does not keep to the protocol: it sent {what}.")
