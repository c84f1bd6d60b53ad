"""Converts JSON Schema to value types: the part of it that callers write in a signature.

A keyword that would restrict values in a way that is not checked is refused, never ignored.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, cast

from .value_types import ANY, DICT, LIST, NAMED, dict_of, list_of, literal, record, union

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

    from .value_types import ValueType

    Schema = dict[str, JsonValue]

_NOTES = {"title", "description", "examples", "default", "$schema", "$id", "$comment", "format"}
"""Keywords that inform a reader and restrict nothing."""
_KEYWORDS = {
    "string": set[str](),
    "number": set[str](),
    "integer": set[str](),
    "boolean": set[str](),
    "null": set[str](),
    "array": {"items"},
    "object": {"properties", "required", "additionalProperties"},
}
_DEFINITIONS = ("$defs", "definitions")
_MAX_REFERENCES = 100
"""References that are followed: each may hold several others."""
_MAX_DEPTH = 16
"""Deeper than any schema that is written by hand, and far below Python's recursion limit."""


def from_json_schema(schema: JsonValue, depth: int = 0) -> ValueType:
    """The type that a JSON Schema describes. Raises `ValueError` if it is not supported."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"the schema is nested deeper than {_MAX_DEPTH} levels")
    if not isinstance(schema, dict):
        raise ValueError(f"a schema is an object, not {json.dumps(schema)}")  # noqa: TRY004 - content
    if depth == 0:
        schema = dict(schema)
        schema = _Definitions(schema).expand(schema)
    keywords = schema.keys() - _NOTES
    if keywords == {"enum"} or keywords == {"enum", "type"}:
        return _choice(schema["enum"])
    if keywords == {"const"} or keywords == {"const", "type"}:
        return _choice([schema["const"]])
    if keywords == {"allOf"} and len(parts := _items(schema, "allOf")) == 1:
        return from_json_schema(parts[0], depth + 1)
    for several in ("anyOf", "oneOf"):
        if keywords == {several}:
            return union([from_json_schema(each, depth + 1) for each in _items(schema, several)])
    return _typed(schema, depth)


class _Definitions:
    """The definitions of a schema, which its references are replaced by."""

    def __init__(self, schema: Schema) -> None:
        self._all: dict[str, JsonValue] = {}
        for name in _DEFINITIONS:
            if isinstance(found := schema.pop(name, {}), dict):
                self._all |= {f"#/{name}/{key}": value for key, value in found.items()}
        self._left = _MAX_REFERENCES

    def expand(self, schema: Schema) -> Schema:
        """The schema without references. Raises `ValueError` if that is not possible."""
        return cast("Schema", self._expand(schema, ()))

    def _expand(self, value: JsonValue, within: tuple[str, ...]) -> JsonValue:
        if isinstance(value, list):
            return [self._expand(item, within) for item in value]
        if not isinstance(value, dict):
            return value
        reference = value.get("$ref")
        if not isinstance(reference, str):
            return {name: self._expand(item, within) for name, item in value.items()}
        shown = json.dumps(reference)
        if reference not in self._all:
            known = ", ".join(map(json.dumps, self._all)) or "none"
            raise ValueError(f'"$ref" {shown} is not defined in this schema (there are: {known})')
        if reference in within:
            raise ValueError(f'"$ref" {shown} refers to itself; a type cannot contain itself here')
        self._left -= 1
        if self._left < 0:
            raise ValueError(
                f'the schema has more than {_MAX_REFERENCES} "$ref" when it is expanded'
            )
        found = self._expand(self._all[reference], (*within, reference))
        notes = {name: note for name, note in value.items() if name in _NOTES}
        return {**found, **notes} if isinstance(found, dict) else found


def _typed(schema: Schema, depth: int) -> ValueType:
    kind = schema.get("type")
    if isinstance(kind, list):
        return union([_typed({**schema, "type": each}, depth) for each in kind])
    if kind is None and not schema.keys() - _NOTES:
        return ANY
    if not isinstance(kind, str) or kind not in _KEYWORDS:
        raise ValueError(f'"type" is one of {", ".join(_KEYWORDS)}, not {json.dumps(kind)}')
    if unknown := schema.keys() - _NOTES - _KEYWORDS[kind] - {"type"}:
        raise ValueError(f'{json.dumps(min(unknown))} is not understood for type "{kind}"')
    if kind == "array":
        return list_of(from_json_schema(schema["items"], depth + 1)) if "items" in schema else LIST
    return _object(schema, depth) if kind == "object" else NAMED[kind]


def _object(schema: Schema, depth: int) -> ValueType:
    others = schema.get("additionalProperties", True)
    if "properties" not in schema and "required" not in schema:
        return DICT if isinstance(others, bool) else dict_of(from_json_schema(others, depth + 1))
    properties = schema.get("properties", {})
    if not isinstance(properties, dict) or not isinstance(others, bool):
        raise ValueError('"properties" is an object, "additionalProperties" beside it a boolean')  # noqa: TRY004 - content
    required = _items(schema, "required") if "required" in schema else []
    fields = {str(name): ANY for name in required}
    fields |= {name: from_json_schema(each, depth + 1) for name, each in properties.items()}
    text = json.dumps(schema, ensure_ascii=False)
    return record(text, fields, frozenset(map(str, required)), closed=not others)


def _choice(values: JsonValue) -> ValueType:
    if not isinstance(values, list) or not values:
        raise ValueError('"enum" is a list of at least one value')
    if any(isinstance(value, float | list | dict) for value in values):
        raise ValueError("a choice is between strings, integers, booleans and null")
    return literal(cast("Sequence[str | int | bool | None]", values))


def _items(schema: Schema, keyword: str) -> list[JsonValue]:
    items = schema[keyword]
    if not isinstance(items, list) or not items:
        raise ValueError(f'"{keyword}" is a list of at least one item')
    return items
