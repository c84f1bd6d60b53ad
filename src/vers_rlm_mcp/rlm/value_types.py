"""The types that a signature can name, and which values fit them.

Values travel as JSON, so the types are JSON's, under the names that Python and JavaScript give
them. They become schemas of pydantic's core directly rather than annotations: a union then fails
with one error at its own place, instead of one per alternative.

Checking is strict. A lax check would turn `'yes'` into True and `'007'` into 7, and the caller
would never know; a strict one costs the model one more step and says why. The one conversion is
an int where a float is wanted, since JSON does not tell 3 from 3.0.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from pydantic_core import CoreSchema, ErrorDetails, SchemaValidator, ValidationError, core_schema

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import JsonValue

MAX_FAULTS = 5
"""Faults of one value that are named; more would not help to correct it."""
_SHOWN_CHARS = 80
"""How much of a wrong value is quoted in a fault."""


@dataclass(frozen=True, slots=True)
class ValueType:
    """A type: its canonical text, by which types are compared, and pydantic's schema for it."""

    text: str
    schema: CoreSchema = field(compare=False, repr=False)
    alternatives: tuple[ValueType, ...] = field(default=(), compare=False, repr=False)
    """The members of a union; empty for every other type."""
    has_files: bool = field(default=False, compare=False, repr=False)
    """Whether its values are paths of files, or contain some."""

    @property
    def nullable(self) -> bool:
        """Whether None is the type or one of its alternatives."""
        return NULL in (self, *self.alternatives)

    def check(self, name: str, value: object) -> tuple[JsonValue, list[str]]:
        """The value as this type, and what is wrong if it does not fit.

        Faults read ``score: expected float, got 'high'``; places inside a value are paths, as in
        ``items[2].name``.
        """
        validator = SchemaValidator(core_schema.definitions_schema(self.schema, [_JSON]))
        try:
            return validator.validate_python(value), []
        except ValidationError as error:
            details = error.errors(include_url=False)
            return None, [_fault(name, self, detail) for detail in details[:MAX_FAULTS]]


_UNREACHED = 1 << 62
"""A length limit that no str reaches; with one set, pydantic reads the text and so refuses lone
surrogates, which could not be sent on as UTF-8."""

STR = ValueType("str", core_schema.str_schema(strict=True, max_length=_UNREACHED))
INT = ValueType("int", core_schema.int_schema(strict=True))
FLOAT = ValueType("float", core_schema.float_schema(strict=True, allow_inf_nan=False))
BOOL = ValueType("bool", core_schema.bool_schema(strict=True))
NULL = ValueType("None", core_schema.none_schema())
FILE = ValueType("file", core_schema.str_schema(strict=True, min_length=1), has_files=True)
"""The path of a file in the machine, which is handed over with the outputs."""
ANY = ValueType("any", core_schema.definition_reference_schema("json"))
LIST = ValueType("list", core_schema.list_schema(ANY.schema, strict=True))
DICT = ValueType("dict", core_schema.dict_schema(STR.schema, ANY.schema, strict=True))

_JSON = core_schema.union_schema(
    [STR.schema, INT.schema, DICT.schema, LIST.schema, NULL.schema, BOOL.schema, FLOAT.schema],
    mode="left_to_right",
    custom_error_type="union",
    custom_error_message="expected JSON (no NaN, no lone surrogates)",
    ref="json",
)

NAMED: Mapping[str, ValueType] = {
    "str": STR,
    "string": STR,
    "int": INT,
    "integer": INT,
    "float": FLOAT,
    "number": FLOAT,
    "bool": BOOL,
    "boolean": BOOL,
    "None": NULL,
    "null": NULL,
    "file": FILE,
    "any": ANY,
    "Any": ANY,
    "list": LIST,
    "List": LIST,
    "array": LIST,
    "dict": DICT,
    "Dict": DICT,
    "object": DICT,
}
"""Every plain type, by each of its names."""


def list_of(item: ValueType) -> ValueType:
    """The type of a list whose items are all of one type."""
    schema = core_schema.list_schema(item.schema, strict=True)
    return ValueType(f"list[{item.text}]", schema, has_files=item.has_files)


def dict_of(value: ValueType) -> ValueType:
    """The type of a dict from str to one type."""
    schema = core_schema.dict_schema(STR.schema, value.schema, strict=True)
    return ValueType(f"dict[str, {value.text}]", schema, has_files=value.has_files)


FILE_TYPES = frozenset({FILE.text, f"list[{FILE.text}]"})
"""The types of outputs, apart from None, that hand over files."""


def literal(values: Sequence[str | int | bool | None]) -> ValueType:
    """The type of exactly these values."""
    shown = ", ".join(_literal_text(value) for value in values)
    return ValueType(f"Literal[{shown}]", core_schema.literal_schema(list(values)))


def union(types: Sequence[ValueType]) -> ValueType:
    """The type of a value that fits at least one of `types`: flat, without repetition."""
    flat = dict.fromkeys(part for each in types for part in (each.alternatives or (each,)))
    if len(flat) == 1:
        return next(iter(flat))
    # None goes last: `str | None` reads better, and equal unions get equal texts more often.
    parts = tuple(sorted(flat, key=lambda part: part == NULL))
    text = " | ".join(part.text for part in parts)
    schema = core_schema.union_schema(
        [part.schema for part in parts],
        custom_error_type="union",
        custom_error_message=f"expected {_escaped(text)}",
    )
    return ValueType(text, schema, parts, has_files=any(part.has_files for part in parts))


def record(
    text: str, fields: Mapping[str, ValueType], required: frozenset[str], *, closed: bool
) -> ValueType:
    """The type of an object with named members. `closed` forbids any other member."""
    members = {
        name: core_schema.typed_dict_field(kind.schema, required=name in required)
        for name, kind in fields.items()
    }
    schema = core_schema.typed_dict_schema(
        members, strict=True, extra_behavior="forbid" if closed else "allow"
    )
    return ValueType(text, schema, has_files=any(kind.has_files for kind in fields.values()))


def _literal_text(value: str | int | bool | None) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _escaped(text: str) -> str:
    """A text for pydantic's messages, where braces would be placeholders."""
    return text.replace("{", "(").replace("}", ")")


_EXPECTED = {
    "string_type": "str",
    "string_unicode": "a str without lone surrogates",
    "int_type": "int",
    "float_type": "float",
    "bool_type": "bool",
    "none_required": "None",
    "list_type": "list",
    "dict_type": "dict",
    "finite_number": "a finite number",
}
_BEYOND_TYPE = ("finite_number", "string_unicode")
"""Faults of values that do have the right type."""


def _fault(name: str, kind: ValueType, error: ErrorDetails) -> str:
    path = name + "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]
    )
    if error["type"] == "missing":
        return f"{path}: missing"
    if error["type"] == "extra_forbidden":
        return f"{path}: not expected here"
    return f"{path}: expected {_expected(kind, error)}, got {describe_value(error['input'])}"


def _expected(kind: ValueType, error: ErrorDetails) -> str:
    if not error["loc"] and kind != ANY and error["type"] not in _BEYOND_TYPE:
        return kind.text
    if error["type"] == "literal_error":
        return str(error.get("ctx", {}).get("expected"))
    return _EXPECTED.get(error["type"], error["msg"].removeprefix("expected "))


def describe_value(value: object) -> str:
    """A short form of a value for a fault, without writing out a large one."""
    if isinstance(value, list):
        return f"a list of {len(cast('list[object]', value))}"
    if isinstance(value, dict):
        return f"a dict of {len(cast('dict[object, object]', value))}"
    if isinstance(value, str) and len(value) > _SHOWN_CHARS:
        return f"{value[:_SHOWN_CHARS]!r}… ({len(value):,} characters)"
    return repr(value)
