"""Python values as JSON, or an error that names the part that cannot be one."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import KeysView, ValuesView

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_DEPTH = 64
"""Levels of nesting; what is deeper most likely contains itself."""

MAX_INTEGER_BITS = 8192
"""JSON has no limit, but Python refuses to read numbers of more than 4,300 digits."""


def to_json(value: Any, where: str, depth: int = 0) -> Any:
    """The JSON equivalent of `value`; errors call it `where`.

    Tuples, sets, ranges and arrays become lists; dataclasses, named tuples and pydantic models
    objects; dates, paths and UUIDs text. Raises TypeError or ValueError, saying what to do.
    """
    if value is None or isinstance(value, bool):
        return value
    if depth > MAX_DEPTH:
        raise ValueError(f"{where[:200]} is nested deeper than {MAX_DEPTH} levels")
    if hasattr(value, "tolist"):
        value = _from_array(value, where)
    elif hasattr(value.__class__, "__members__"):
        value = value.value
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, (int, float)):
        return _number(value, where)
    items = _as_mapping(value)
    if items is not None:
        return _object(items, where, depth)
    if isinstance(value, _SEQUENCES):
        return [
            to_json(item, f"{where}[{index}]", depth + 1)
            for index, item in enumerate(_ordered(value))
        ]
    return _from_object(value, where)


_SEQUENCES: Any = (list, tuple, set, frozenset, range, deque, KeysView, ValuesView)


def _text(value: str) -> str:
    """A plain str that UTF-8 can carry: lone surrogates, as in names of files, become ``?``."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode(errors="replace").decode()
    return str.__str__(value)


def _number(value: float, where: str) -> float:
    if isinstance(value, int):
        if value.bit_length() > MAX_INTEGER_BITS:
            raise ValueError(f"{where} is a number too large for JSON; hand it over as str(...)")
        return int(value)
    if not math.isfinite(value):
        raise ValueError(f"{where} is {value}, which JSON cannot hold; use None or a str instead")
    return float(value)


def _as_mapping(value: Any) -> dict[Any, Any] | None:
    if isinstance(value, dict):
        return value  # pyright: ignore[reportUnknownVariableType] - any keys, any values
    if hasattr(value, "model_dump"):
        return value.model_dump()
    if hasattr(value, "_asdict"):
        return value._asdict()
    fields = getattr(value.__class__, "__dataclass_fields__", None)
    if fields is not None:
        return {name: getattr(value, name) for name in fields}
    return None


def _object(items: dict[Any, Any], where: str, depth: int) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, item in items.items():
        name = _key(key, where)
        if name in made:
            raise ValueError(
                f"{where} has several keys that are {name!r:.80} in JSON, which has only text as "
                "keys: rename one"
            )
        made[name] = to_json(item, f"{where}[{key!r:.40}]", depth + 1)
    return made


def _from_array(value: Any, where: str) -> Any:
    """The list of an array, where that says all of it."""
    dtype = getattr(value, "dtype", None)
    if hasattr(value, "iloc") and type(value.index).__name__ != "RangeIndex":
        raise TypeError(
            f"{where} is a Series whose labels a list would lose; hand over value.to_dict() or "
            "value.tolist()"
        )
    if getattr(dtype, "names", None):
        raise TypeError(
            f"{where} is an array with named fields, which a list would lose; hand over "
            "[dict(zip(value.dtype.names, row)) for row in value.tolist()]"
        )
    if getattr(dtype, "kind", "") in ("m", "M") and hasattr(value, "astype"):
        return value.astype(str).tolist()  # of nanoseconds, `tolist` leaves only their number
    return value.tobytes() if isinstance(value, memoryview) else value.tolist()


def _key(key: Any, where: str) -> str:
    if isinstance(key, str):
        return _text(key)
    if key is None or isinstance(key, (bool, int, float)):
        return str(key)
    raise TypeError(
        f"{where} has the key {key!r:.80} of type {type(key).__name__}; JSON has only text as "
        "keys: convert it with str(...)"
    )


def _ordered(value: Any) -> Any:
    """Sets in an order that does not change from run to run, where they can be sorted."""
    if not isinstance(value, (set, frozenset)):
        return value
    try:
        return sorted(value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    except TypeError:
        return sorted(value, key=repr)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def _from_object(value: Any, where: str) -> Any:
    kind = type(value).__name__
    if kind == "NaTType":
        raise ValueError(f"{where} is NaT, which JSON cannot hold; use None or a str instead")
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if hasattr(value, "__fspath__"):
        return to_json(value.__fspath__(), where)
    if kind == "UUID":
        return str(value)
    if kind == "Decimal":
        return _from_decimal(value, where)
    if kind == "DataFrame" and hasattr(value, "to_dict"):
        return _from_table(value, where)
    hint = {
        "bytes": "decode it, e.g. value.decode()",
        "generator": "make a list of it, e.g. list(value)",
        "coroutine": "await it first",
    }.get(kind, "convert it first, e.g. str(value), list(value) or vars(value)")
    raise TypeError(f"{where} is a {kind}, which cannot be handed over as JSON; {hint}")


def _from_decimal(value: Any, where: str) -> float:
    """A Decimal as the number that is written like it."""
    number = float(value)
    if not math.isfinite(number) or type(value)(repr(number)) == value:
        return _number(number, where)
    if value == value.to_integral_value():
        return _number(int(value), where)
    raise ValueError(
        f"{where} is a Decimal that no float equals; hand it over as str(value) or float(value)"
    )


def _from_table(value: Any, where: str) -> Any:
    """The records of a table, where these say all of it."""
    columns = list(getattr(value, "columns", ()))
    if hasattr(value, "iloc") and type(value.index).__name__ != "RangeIndex":
        raise TypeError(
            f"{where} is a DataFrame whose labels its records would lose; hand over "
            "value.reset_index() or value.to_dict()"
        )
    if len(set(columns)) < len(columns):
        raise ValueError(f"{where} is a DataFrame with columns of the same name; rename them")
    return to_json(value.to_dict("records"), where)
