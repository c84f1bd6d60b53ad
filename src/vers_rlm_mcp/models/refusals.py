"""What a provider says when it does not reply, whatever the shape in which it says it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from vers_rlm_mcp.replies import parse_json

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_DEPTH = 8
"""Levels of a body in which a message is looked for."""
MAX_MESSAGES = 6

_MESSAGES = (
    *("message", "msg", "error_msg", "error_message", "error_description", "detail"),
    *("details", "error", "errors", "title", "reason", "metadata", "raw", "description"),
)
"""Fields that hold a message, or something that does. `raw` is what OpenRouter passes on."""
_CODES = ("code", "type", "error_code", "status")
_TAG = re.compile(r"<(script|style)\b.*?</\1\s*>|<[^<>]{1,1000}>", re.DOTALL | re.IGNORECASE)


class Refusal(Exception):
    """A provider's answer that is not a reply. It does not leave this package.

    Args:
        status: The HTTP status, or the one that an error in a stream implies.
        words: The provider's message.
        headers: Of the response, if the refusal is one.
    """

    def __init__(self, status: int, words: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(f"{status}: {words}")
        self.status = status
        self.words = words
        self.headers = headers or {}


@dataclass(frozen=True, slots=True)
class Said:
    """What a body says."""

    words: str
    codes: frozenset[str] = field(default_factory=frozenset[str])
    """Codes and types, in lower case."""


def read_body(content: bytes) -> Said:
    """What the body of an error says."""
    try:
        return read_document(parse_json(content))
    except ValueError:
        return Said(_plain(content.decode("utf-8", "replace")))


def read_document(document: object) -> Said:
    """What a JSON document says."""
    messages = list(dict.fromkeys(_messages(document, "", 0)))[:MAX_MESSAGES]
    words = "; ".join(messages) or (_plain(json.dumps(document)) if document else "")
    return Said(words, frozenset(_codes(document, 0)))


def is_refusal(document: Mapping[str, object]) -> bool:
    """Whether a document of a stream, which holds no part of a reply, holds an error."""
    if document.get("error") or "error" in {document.get("object"), document.get("type")}:
        return True
    return any(isinstance(document.get(name), str | list) for name in _MESSAGES)


def _messages(value: object, place: str, depth: int) -> Iterator[str]:
    if depth > MAX_DEPTH:
        return
    if isinstance(value, str):
        yield from _text(value, place, depth)
    elif isinstance(value, list):
        for each in cast("list[object]", value)[:MAX_MESSAGES]:
            yield from _messages(each, place, depth + 1)
    elif isinstance(value, Mapping):
        fields = cast("Mapping[str, object]", value)
        # FastAPI and pydantic: {"loc": ["body", "stream_options"], "msg": …}. OpenAI: `param`.
        where = fields.get("loc") or fields.get("param")
        if isinstance(where, list):
            place = ".".join(map(str, cast("list[object]", where)))
        elif isinstance(where, str):
            place = where
        for name in _MESSAGES:
            yield from _messages(fields.get(name), place, depth + 1)


def _text(text: str, place: str, depth: int) -> Iterator[str]:
    if text.lstrip()[:1] in {"{", "["}:
        try:
            inner = parse_json(text.encode("utf-8", "replace"))
        except ValueError:
            pass
        else:
            yield from _messages(inner, place, depth + 1)
            return
    words = _plain(text)
    if words:
        yield words if not place or place in words else f"{place}: {words}"


def _codes(value: object, depth: int) -> Iterator[str]:
    if depth > MAX_DEPTH or not isinstance(value, Mapping):
        return
    fields = cast("Mapping[str, object]", value)
    for name in _CODES:
        if isinstance(code := fields.get(name), str | int):
            yield str(code).lower()
    for name in ("error", "details"):
        yield from _codes(fields.get(name), depth + 1)


def _plain(text: str) -> str:
    """Text without the tags of a web page, on one line."""
    is_page = text.lstrip()[:1] == "<"
    return " ".join((_TAG.sub(" ", text[:65536]) if is_page else text).split())
