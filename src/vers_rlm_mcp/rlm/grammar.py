"""The tokens of a signature and the grammar of its types."""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, TypeVar, cast

from vers_rlm_mcp.errors import SignatureError

from .json_schema import from_json_schema
from .value_types import NAMED, NULL, STR, ValueType, dict_of, list_of, literal, union

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pydantic import JsonValue

T = TypeVar("T")

EXAMPLE = "task, documents: list[str] -> answer: str, score: float, source?: str"
"""A correct signature, shown with every error."""

_MAX_DEPTH = 16
"""Deeper than any type that is written by hand, and far below Python's recursion limit."""
_EXCERPT = 40
"""Characters of a signature shown on each side of a fault."""

_TOKEN = re.compile(
    r"""(?P<space>\s+) | (?P<name>[^\W\d]\w*) | (?P<number>-?[0-9]{1,18}) | (?P<quoted>'[^'\\]*')
    | (?P<mark>->|\[\]|[:,?|()\[\]])""",
    re.VERBOSE,
)
_GENERICS = {
    "list": "list",
    "List": "list",
    "array": "list",
    "Array": "list",
    "dict": "dict",
    "Dict": "dict",
    "Optional": "Optional",
    "Union": "Union",
    "Literal": "Literal",
}
_TYPES = "str, int, float, bool, any, list[T], dict[str, T], Optional[T], Literal[...] and T | U"
_NO_JSON = frozenset({"set", "Set", "frozenset", "FrozenSet", "tuple", "Tuple", "Sequence"})
_CONSTANTS: Mapping[str, bool | None] = {
    "True": True,
    "true": True,
    "False": False,
    "false": False,
    "None": None,
    "null": None,
}


@dataclass(frozen=True, slots=True)
class Token:
    """A token of a signature. `value` is set for strings, numbers and schemas."""

    kind: str
    text: str
    start: int
    value: object = None


class Scanner:
    """Splits a signature into tokens, and shows where in it a fault is."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._json = json.JSONDecoder(strict=False)

    def tokens(self) -> Iterator[Token]:
        """The tokens in order, then one of kind ``end``. Raises `SignatureError`."""
        at = 0
        while at < len(self.text):
            token = self._decode(at) if self.text[at] in '"{' else self._match(at)
            at += len(token.text)
            if token.kind != "space":
                yield token
        yield Token("end", "", at)

    def fail(self, message: str, at: int) -> NoReturn:
        """Raise a `SignatureError` that shows the place and a right signature."""
        start = max(0, at - _EXCERPT)
        # Line breaks become spaces, so that the mark below stays under its place.
        line = re.sub(r"\s", " ", self.text[start : at + _EXCERPT])
        raise SignatureError(
            f"The signature cannot be read, character {at + 1}: {message}.\n"
            f"  {line}\n  {' ' * (at - start)}^\nA right one: {EXAMPLE}"
        )

    def _match(self, at: int) -> Token:
        match = _TOKEN.match(self.text, at)
        if match is None or match.lastgroup is None:
            self.fail(f"unexpected {self.text[at]!r}", at)
        text = match.group()
        if match.lastgroup == "quoted":
            return Token("string", text, at, text[1:-1])
        if match.lastgroup == "number":
            return Token("number", text, at, int(text))
        return Token(match.lastgroup, text, at)

    def _decode(self, at: int) -> Token:
        try:
            value, end = self._json.raw_decode(self.text, at)
        except json.JSONDecodeError as error:
            self.fail(f"this is not JSON: {error.msg}", error.pos)
        except RecursionError:
            self.fail("this is nested too deeply", at)
        return Token("string" if isinstance(value, str) else "schema", self.text[at:end], at, value)


class TypeParser:
    """Recursive descent over the tokens, with the grammar of types."""

    def __init__(self, scanner: Scanner) -> None:
        self._scanner = scanner
        self._tokens = scanner.tokens()
        self._depth = 0
        self.token = next(self._tokens)

    def fail(self, message: str, token: Token | None = None) -> NoReturn:
        """Raise a `SignatureError` that points at `token`, or at the current one."""
        self._scanner.fail(message, (token or self.token).start)

    def is_at(self, mark: str) -> bool:
        """Whether the current token is this mark."""
        return self.token.kind == "mark" and self.token.text == mark

    def advance(self) -> Token:
        """Return the current token and move to the next one."""
        token = self.token
        if token.kind != "end":
            self.token = next(self._tokens)
        return token

    def take(self, mark: str) -> bool:
        """Skip the current token if it is this mark; returns whether it was."""
        found = self.is_at(mark)
        if found:
            self.advance()
        return found

    def expect(self, kind: str, what: str) -> Token:
        """Return the current token, which must be of this kind, and move to the next one."""
        if self.token.kind != kind:
            self.fail(f"expected {what}")
        return self.advance()

    def close(self, mark: str) -> None:
        """Skip a closing mark, which must be the current token."""
        if not self.take(mark):
            self.fail(f"expected `{mark}`")

    def type(self) -> ValueType:
        """Parse a type or a union of types."""
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            self.fail(f"types are nested deeper than {_MAX_DEPTH} levels")
        parts = [self._part()]
        while self.take("|"):
            parts.append(self._part())
        self._depth -= 1
        return union(parts)

    def _part(self) -> ValueType:
        part = self._atom()
        while self.take("[]"):
            part = list_of(part)
        return part

    def _atom(self) -> ValueType:
        if self.take("("):
            inner = self.type()
            self.close(")")
            return inner
        token = self.advance()
        if token.kind == "string":
            return literal([str(token.value)])
        if token.kind == "schema":
            return self._schema(token)
        if token.kind != "name":
            self.fail("expected a type", token)
        return self._named(token)

    def _named(self, token: Token) -> ValueType:
        generic = _GENERICS.get(token.text)
        if generic and self.take("["):
            kind = self._generic(generic)
            self.close("]")
            return kind
        if token.text in NAMED:
            return NAMED[token.text]
        if token.text in _NO_JSON:
            self.fail(f"unknown type {token.text!r}: JSON has none; write list[T] instead", token)
        close = difflib.get_close_matches(token.text, [*NAMED, *_GENERICS], n=1)
        hint = f"{close[0]} may be meant" if close else f"there are {_TYPES}"
        return self.fail(f"unknown type {token.text!r}; {hint}", token)

    def _generic(self, name: str) -> ValueType:
        if name == "list":
            return list_of(self.type())
        if name == "dict":
            return self._dict()
        if name == "Optional":
            return union([self.type(), NULL])
        if name == "Union":
            return union(self._separated(self.type))
        return literal(self._separated(self._constant))

    def _dict(self) -> ValueType:
        token = self.token
        if self.type() != STR:
            self.fail("the keys of a dict are always str, since values travel as JSON", token)
        if not self.take(","):
            self.fail("expected `,` and the type of the values")
        return dict_of(self.type())

    def _separated(self, item: Callable[[], T]) -> list[T]:
        items = [item()]
        while self.take(","):
            items.append(item())
        return items

    def _constant(self) -> str | int | bool | None:
        token = self.advance()
        if token.kind == "string":
            return str(token.value)
        if token.kind == "number":
            return int(token.text)
        if token.kind != "name" or token.text not in _CONSTANTS:
            self.fail("expected a quoted string, an integer, True, False or None", token)
        return _CONSTANTS[token.text]

    def _schema(self, token: Token) -> ValueType:
        try:
            return from_json_schema(cast("JsonValue", token.value))
        except ValueError as error:
            self.fail(f"in this JSON Schema, {error}", token)
