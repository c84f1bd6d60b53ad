"""Answers cut to the size that their reader shows: the middle of long texts, the end of lists."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Measure = Callable[[str], int]

T = TypeVar("T")

MIN_CHARS: Final = 60
"""A text is not cut below this: less would say nothing."""

MAX_DEPTH: Final = 64
"""Levels of lists and objects in an answer; what is deeper becomes text."""

GAP: Final = "\n… {:,} characters left out …\n"


def dump(value: object) -> str:
    """A value as JSON, as clients show it."""
    return json.dumps(value, ensure_ascii=False, default=str)


def utc(seconds: float) -> str:
    """A time since the epoch, to the second."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def shorten(text: str, limit: int) -> str:
    """At most about `limit` characters of a text: its beginning and its end."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}{GAP.format(len(text) - 2 * half)}{text[-half:]}"


def shorten_lines(text: str, limit: int) -> str:
    """At most `limit` lines of a text: its beginning and its end."""
    lines = text.split("\n")
    if len(lines) <= limit:
        return text
    half = (limit - 1) // 2
    gap = f"… {len(lines) - 2 * half:,} lines left out …"
    return "\n".join([*lines[:half], gap, *lines[-half:]])


def fit_text(text: str, room: int, measure: Measure) -> str:
    """A text cut to a size as it is measured."""
    if measure(text) <= room:
        return text
    return largest(len(text), lambda limit: shorten(text, limit), lambda it: measure(it) <= room)


def fit_fields(fields: Mapping[str, Any], room: int, measure: Measure) -> dict[str, Any]:
    """The fields of an answer, cut so that their JSON has a size.

    Long texts lose their middle. If that is not enough, long lists and objects lose their end.
    """

    def fits(value: object) -> bool:
        return measure(dump(value)) <= room

    whole = dict(fields)
    if fits(whole):
        return whole

    def cut(chars: int, items: int | None) -> dict[str, Any]:
        return {name: _cut(value, chars, items) for name, value in fields.items()}

    if fits(cut(MIN_CHARS, None)):
        return largest(room, lambda chars: cut(chars, None), fits, MIN_CHARS)
    return largest(room, lambda items: cut(MIN_CHARS, items), fits)


def prefix(text: str, room: int, measure: Measure = len) -> str:
    """The longest beginning of a text whose JSON has a size."""

    def fits(beginning: str) -> bool:
        return measure(dump(beginning)) <= room

    return largest(min(len(text), room), lambda end: text[:end], fits)


def largest(most: int, make: Callable[[int], T], fits: Callable[[T], bool], least: int = 0) -> T:
    """What is made of about the largest number, up to `most`, for which it fits."""
    if fits(made := make(most)):
        return made
    low, high, best = least, most, make(least)
    while high - low > max(1, low // 50):
        middle = (low + high) // 2
        if fits(made := make(middle)):
            low, best = middle, made
        else:
            high = middle
    return best


def as_json(value: Any, depth: int = 0) -> Any:
    """A value that can be written as JSON: whole characters only, and nested as deep as is read."""
    if isinstance(value, str):
        return _whole(value)
    if depth > MAX_DEPTH:
        return _whole(dump(value))
    if isinstance(value, dict):
        pairs = cast("dict[str, Any]", value).items()
        return {_whole(str(name)): as_json(each, depth + 1) for name, each in pairs}
    if isinstance(value, list | tuple):
        return [as_json(each, depth + 1) for each in cast("Sequence[Any]", value)]
    return value


def _whole(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _cut(value: Any, chars: int, items: int | None) -> Any:
    """A value with texts of at most `chars` characters, and at most `items` items of each list."""
    if isinstance(value, str):
        return shorten(value, chars)
    if isinstance(value, dict):
        pairs = list(cast("dict[str, Any]", value).items())[:items]
        return {shorten(name, chars): _cut(each, chars, items) for name, each in pairs}
    if isinstance(value, list | tuple):
        return [_cut(each, chars, items) for each in list(cast("Sequence[Any]", value))[:items]]
    return value
