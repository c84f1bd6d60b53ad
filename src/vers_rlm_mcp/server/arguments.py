"""Arguments as models send them, read as the tool means them where that is beyond doubt.

Models spell `vmId` as `vm_id`, send null for what they leave out, and numbers, lists and objects as
text. What is in doubt is refused, with the names that there are.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from types import UnionType
from typing import TYPE_CHECKING, Any, Final, Union, cast, get_args, get_origin

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import from_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pydantic.fields import FieldInfo

MAX_NUMBER: Final = 2**53
"""Numbers beyond this are not whole in JavaScript, and mean nothing to any tool."""

NUMBER: Final = re.compile(r"\s*[+-]?[0-9]{16,}\s*")
"""Text that a number out of range may be."""

NAME_CHARS: Final = 60
"""Characters of an unknown name that an error repeats."""


class Options(BaseModel):
    """An argument with fields of its own, which are read in the same way."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return read_arguments(cast("dict[str, Any]", value), cls.model_fields)


def read_arguments(given: Mapping[str, Any], fields: Mapping[str, FieldInfo]) -> dict[str, Any]:
    """The arguments by their own names, without those that are left out.

    Raises:
        ValueError: There is no such argument, one is given twice, one is missing, or a number is
            out of range.
    """
    by_folded = {_fold(name): name for name in fields}
    taken: dict[str, Any] = {}
    faults: list[str] = []
    unknown: list[str] = []
    for spelling, value in given.items():
        name = spelling if spelling in fields else by_folded.get(_fold(spelling))
        if name is None:
            unknown.append(spelling)
        elif name in taken and taken[name] != value:
            faults.append(f"{name!r} is given twice, with different values")
        elif not (value is None and not fields[name].is_required()):
            taken[name] = _unpack(value, fields[name])
            if _is_beyond(value) and not _kinds(fields[name].annotation) & {str}:
                faults.append(f"{name!r} is out of range")
    if faults or unknown:
        missing = [name for name, it in fields.items() if it.is_required() and name not in taken]
        faults += [_describe_unknown(name, missing, fields) for name in unknown]
        faults += [f"{name!r} is missing" for name in missing]
        takes = ", ".join(fields) or "no arguments"
        raise ValueError(f"{'; '.join(faults)}. It takes: {takes}.")
    return taken


def unpack_arguments(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parameters of a call, whose arguments as a whole may be JSON text or an empty list."""
    arguments: Any = params.get("arguments")
    if isinstance(arguments, str):
        arguments = _parse(arguments.strip() or "{}")
    return {**params, "arguments": arguments or None}


def _unpack(value: Any, field: FieldInfo) -> Any:
    """A value; a list or an object that was sent as JSON text; a list's only item by itself."""
    kinds = _kinds(field.annotation)
    if not isinstance(value, str) or not kinds & {list, dict}:
        return value
    if value.lstrip()[:1] in ("[", "{") and type(parsed := _parse(value)) in kinds:
        return parsed
    return [value] if list in kinds and str not in kinds else value


def _parse(text: str) -> Any:
    """The value of JSON text, or the text if it is none."""
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError:
        return text


def _kinds(annotation: Any) -> set[type]:
    """The types that an argument takes."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        return {kind for option in get_args(annotation) for kind in _kinds(option)}
    kind = origin or annotation
    if not isinstance(kind, type):
        return set()
    return {dict} if issubclass(kind, BaseModel) else {kind}


def _is_beyond(value: object) -> bool:
    if isinstance(value, str) and NUMBER.fullmatch(value):
        value = float(value)
    return isinstance(value, int | float) and not abs(value) <= MAX_NUMBER


def _describe_unknown(name: str, *likely: Iterable[str]) -> str:
    """That there is no such argument, and which was meant, out of the names most likely first."""
    by_folded = [{_fold(each): each for each in names} for names in likely]
    close = [names[it] for names in by_folded for it in get_close_matches(_fold(name), names, n=1)]
    meant = f" (did you mean {close[0]!r}?)" if close else ""
    return f"there is no argument {name[:NAME_CHARS]!r}{meant}"


def _fold(name: str) -> str:
    return name.replace("_", "").replace("-", "").casefold()
