"""The framing of everything that our programs in machines and their hosts say to each other.

A frame is two big-endian 32-bit lengths, a JSON object as header, and a binary payload. The header
holds the frame's kind and small facts; code, output and JSON values travel as payload. Which kinds
there are is up to the two programs: see `frames` here and in the kernel's guest.

This module does no I/O. It also runs on the machine's own Python: standard library only, 3.8 and
newer, and no import that would slow the start of a kernel or a machine.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

MAX_HEADER = 64 * 1024
"""Bytes of a header: it holds a few names and numbers, and a path of at most 4 KiB, escaped."""

MAX_PAYLOAD = 32 * 1024 * 1024
"""Bytes of a payload: 256 prompts of 100 KB each fit; what is larger belongs into a file."""

MAX_VALUES = 500_000
"""Values in one JSON payload: parsed, they take about 80 bytes each, whatever they look like."""

_LENGTHS = struct.Struct("!II")
_STRINGS = rb'"[^"\\]*(?:\\.[^"\\]*)*"'


class FrameError(ValueError):
    """Bytes that are not a frame of this protocol, or a frame that is over its limits."""


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _refuse_type(value: object) -> None:
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


class _Decoding:
    """What the scanner reads of a `json.JSONDecoder`."""

    strict = True
    object_hook = object_pairs_hook = array_hook = None
    parse_float = float
    parse_int = int
    parse_constant = _refuse_constant


try:
    # What `json` itself calls. Its own modules import `re` and `enum`, which takes half as long as
    # starting Python does.
    from _json import encode_basestring, encode_basestring_ascii, make_encoder, make_scanner

    _scan = make_scanner(_Decoding)  # pyright: ignore[reportArgumentType] - as the C code takes it

    def to_json(value: Any, *, ascii_only: bool = True) -> str:
        """A value as strict JSON."""
        text = encode_basestring_ascii if ascii_only else encode_basestring
        write = make_encoder({}, _refuse_type, text, None, ":", ",", False, False, False)
        return "".join(write(value, 0))

    to_json([])
except (ImportError, AttributeError, TypeError):  # a Python that does it in another way
    import json

    _scan = json.JSONDecoder(parse_constant=_refuse_constant).raw_decode

    def to_json(value: Any, *, ascii_only: bool = True) -> str:
        """A value as strict JSON."""
        return json.dumps(value, ensure_ascii=ascii_only, allow_nan=False, separators=(",", ":"))


def from_json(text: str) -> Any:
    """The value of strict JSON. Raises `ValueError`, or `RecursionError` if it nests too deep."""
    text = text.strip(" \t\n\r")
    try:
        value, end = _scan(text, 0)
    except StopIteration as stop:
        raise ValueError(f"there is no value at character {stop.value}") from None
    if end != len(text):
        raise ValueError(f"there is more than one value, from character {end} on")
    return value


class Frame:
    """One message: its kind, the other fields of its header, and its payload."""

    __slots__ = ("fields", "kind", "payload")

    def __init__(self, kind: str, fields: dict[str, Any], payload: bytes = b"") -> None:
        self.kind = kind
        self.fields = fields
        self.payload = payload


def encode(kind: str, fields: dict[str, Any], payload: bytes = b"") -> bytes:
    """The bytes of a frame. Raises `FrameError` when it is over the limits."""
    header = to_json({"kind": kind, **fields}).encode()
    _check_lengths(len(header), len(payload))
    return b"".join((_LENGTHS.pack(len(header), len(payload)), header, payload))


class Decoder:
    """Turns bytes, split anywhere, back into frames.

    Holds at most one incomplete frame, and what was fed and not asked for. After a `FrameError` the
    rest of the stream has no meaning.

    Args:
        kinds: The kinds of frames that are accepted.
        max_payload: Bytes of the largest payload that is accepted.
    """

    def __init__(self, kinds: frozenset[str], max_payload: int = MAX_PAYLOAD) -> None:
        self._kinds = kinds
        self._max_payload = max_payload
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that `data` completes, each decoded when it is asked for.

        What is left of an earlier feed comes first; its own iterator need not be used up.
        """
        self._buffer += data
        return self._whole_frames()

    def _whole_frames(self) -> Iterator[Frame]:
        while len(self._buffer) >= _LENGTHS.size:
            header, payload = _LENGTHS.unpack_from(self._buffer)
            _check_lengths(header, payload, self._max_payload)
            start = _LENGTHS.size + header
            if len(self._buffer) < start + payload:
                return
            with memoryview(self._buffer) as view:
                head = bytes(view[_LENGTHS.size : start])
                body = bytes(view[start : start + payload])
            del self._buffer[: start + payload]
            yield self._frame(head, body)

    def _frame(self, head: bytes, body: bytes) -> Frame:
        header: Any = load(head)
        if not isinstance(header, dict):
            raise FrameError(f"a frame's header is a JSON {type(header).__name__}, not an object")
        fields: dict[str, Any] = header  # pyright: ignore[reportUnknownVariableType] - its keys are str
        kind = fields.pop("kind", None)
        if not isinstance(kind, str) or kind not in self._kinds:
            raise FrameError(f"unknown kind of frame: {str(kind)[:40]!r}")
        return Frame(kind, fields, body)


def _check_lengths(header: int, payload: int, max_payload: int = MAX_PAYLOAD) -> None:
    if header > MAX_HEADER:
        raise FrameError(f"a header of {header} bytes is over the limit of {MAX_HEADER}")
    if payload > max_payload:
        raise FrameError(f"a payload of {payload} bytes is over the limit of {max_payload}")


def dump(value: Any, *, most: int = MAX_VALUES) -> bytes:
    """A JSON value as bytes. A str may hold lone surrogates, as names of files do.

    Raises `FrameError` when the other half would refuse it for its size.
    """
    try:
        data = to_json(value, ascii_only=False).encode()
    except UnicodeEncodeError:
        data = to_json(value).encode()
    _check_lengths(0, len(data))
    _check_values(data, most)
    return data


def load(data: bytes, *, most: int = MAX_VALUES, surrogates: bool = False) -> Any:
    """The JSON value in `data`, which is not trusted.

    Raises `FrameError` for what is not strict JSON (NaN and infinities included), nests too deep,
    or would take much more memory than its bytes. Lone surrogates, which no UTF-8 can carry on,
    become ``?`` unless `surrogates` are wanted.
    """
    _check_values(data, most)
    try:
        value = from_json(data.decode())
        if not surrogates and (b"\\ud" in data or b"\\uD" in data):
            clean = to_json(value, ascii_only=False).encode(errors="replace")
            value = from_json(clean.decode())
    except (ValueError, RecursionError) as error:
        raise FrameError(f"not JSON: {str(error)[:200]}") from None
    return value


def _check_values(data: bytes, most: int) -> None:
    """Refuse too many values; strings are only looked past when it matters."""
    if _marks(data) <= most:
        return
    import re  # noqa: PLC0415 - slow, and hardly ever needed

    if _marks(re.sub(_STRINGS, b"", data, flags=re.DOTALL)) > most:
        raise FrameError(f"a JSON payload holds more than {most} values")


def _marks(data: bytes) -> int:
    """How many values `data` holds, at most and but for one."""
    return data.count(b",") + data.count(b"[") + data.count(b"{")
