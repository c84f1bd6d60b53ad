"""Digests of plain values, by which variables of two kernels can be compared."""

from __future__ import annotations

import hashlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_VALUES = 50_000
"""Values within one: a tenth of a second."""

MAX_BYTES = 16 * 1024 * 1024
"""Bytes of all texts within one: some hundredths of a second."""

ATOMS: Any = (type(None), bool, int, float, complex, str, bytes, bytearray)


def digest(value: Any) -> str | None:
    """A digest that equal values have in any kernel; None if the value is large or not plain data.

    Subclasses of the types below do not count, since they may have code of their own.
    """
    found = hashlib.sha256()
    pending: list[Any] = [value]
    values = size = 0
    while pending:
        item = pending.pop()
        kind = type(item)  # pyright: ignore[reportUnknownVariableType] - it may be anything
        if kind in (list, tuple):
            parts = item
        elif kind is dict:
            parts = [part for pair in item.items() for part in pair]
        elif kind in ATOMS:
            parts = ()
        else:
            return None
        values += 1 + len(parts)
        size += _size(item)
        if values > MAX_VALUES or size > MAX_BYTES:
            return None
        found.update(b"%s %d " % (kind.__name__.encode(), len(parts)))
        if kind in ATOMS:
            data = _bytes(item)
            found.update(b"%d " % len(data))
            found.update(data)
        pending += parts
    return found.hexdigest()[:16]


def _size(item: Any) -> int:
    if isinstance(item, int):
        return item.bit_length() // 8
    return len(item) if isinstance(item, (str, bytes, bytearray)) else 0


def _bytes(item: Any) -> bytes:
    if isinstance(item, str):
        return item.encode(errors="surrogatepass")
    if isinstance(item, int):
        return b"%x" % item
    return bytes(item) if isinstance(item, (bytes, bytearray)) else repr(item).encode()
