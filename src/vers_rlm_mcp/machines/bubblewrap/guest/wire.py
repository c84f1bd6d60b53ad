"""The wire between the host and a machine's PID 1: a frame is a list of byte strings.

A frame is a 4-byte size and that many bytes; these hold the fields, each a 4-byte size and its
bytes. Sizes are big-endian. A field may itself hold packed fields. What comes from the machine is
not trusted: `unpack` takes any bytes and either returns fields or raises ValueError.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` takes milliseconds to import, and this runs when a machine boots.
    from collections.abc import Iterable

MAX_FRAME = 4 * 1024 * 1024
"""Bytes of the largest frame: twice what Linux allows for a program's arguments."""


def pack(fields: Iterable[bytes]) -> bytes:
    """The fields as one byte string."""
    return b"".join(len(field).to_bytes(4, "big") + field for field in fields)


def unpack(data: bytes) -> list[bytes]:
    """The fields of a byte string that `pack` made. Raises ValueError for any other."""
    fields: list[bytes] = []
    position = 0
    while position < len(data):
        start = position + 4
        end = start + int.from_bytes(data[position:start], "big")
        if end > len(data) or start > len(data):
            raise ValueError("a field is cut short")
        fields.append(data[start:end])
        position = end
    return fields


def frame(fields: Iterable[bytes]) -> bytes:
    """The fields as one frame. Raises ValueError when it would be too large."""
    body = pack(fields)
    if len(body) > MAX_FRAME:
        raise ValueError(f"a frame of {len(body):,} bytes")
    return len(body).to_bytes(4, "big") + body
