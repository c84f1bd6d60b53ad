"""Reads outputs from a reply that is no cell: an extraction's, or a sub-model's.

Here a value is taken as it is meant, as long as that is beyond doubt, since no code can be asked
for. Answers given by ``FINAL`` are checked strictly instead.
"""

from __future__ import annotations

import ast
import json
import re
from typing import TYPE_CHECKING, Any, cast

from . import python_text
from .fences import find_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pydantic import JsonValue

    from .signature import Checked, Signature
    from .value_types import ValueType

_MAX_OBJECTS = 100
"""How many `{` of a reply are tried as the beginning of an object."""
_MAX_LOOSE_OBJECTS = 20
_MAX_LOOSE = 20_000
"""Characters behind a `{` in which an object that is no JSON has to end."""
_STRING = r"""(?:"(?:[^"\\\n]|\\.)*+"|'(?:[^'\\\n]|\\.)*+')"""
_BRACES = re.compile(rf"{_STRING}|(?P<open>[{{\[(])|(?P<close>[}}\])])", re.DOTALL)
_NAMES = re.compile(rf"{_STRING}|//[^\n]*|\b(?:true|false|null)\b", re.DOTALL)
_PYTHON_NAMES = {"true": "True", "false": "False", "null": "None"}
_WRAPPERS = ("outputs", "output", "result", "answer", "final", "arguments")
"""Under what models put their outputs once more."""


def read_outputs(reply: str, signature: Signature) -> Checked:
    """The outputs in a reply: the last ones that fit, or the last ones and their faults.

    What comes last counts, since an example may precede an answer. A call of ``FINAL`` counts more.
    """
    names = {field.name for field in signature.outputs}
    faulty: Checked | None = None
    is_tried = False
    for given in _find_given(reply, signature):
        checked = signature.check_outputs(given)
        if checked.faults:
            checked = signature.check_outputs(_as_meant(given, signature))
        if not checked.faults:
            return checked
        is_tried = is_tried or bool(names & given.keys())
        if faulty is None or (checked.values and not faulty.values):
            faulty = checked
    alone = _read_alone(reply, signature, is_tried=is_tried)
    return alone or faulty or signature.check_outputs({})


def read_call(
    args: Sequence[Any], kwargs: Mapping[str, Any], signature: Signature
) -> Iterator[dict[str, Any]]:
    """The outputs that a call of FINAL may mean, the likeliest first."""
    names = [field.name for field in signature.outputs]
    if len(args) == 1 and not kwargs:
        (value,) = args
        # With one output a dict may be its value, or hold it by name.
        if isinstance(value, dict) and (len(names) > 1 or names[0] in value):
            yield cast("dict[str, Any]", value)
    positional = dict(zip(names, args, strict=False))
    if len(args) <= len(names) and not positional.keys() & kwargs.keys():
        yield {**positional, **kwargs}


def parse_objects(text: str) -> Iterator[dict[str, JsonValue]]:
    """The objects in a text, outermost ones only, first to last: JSON, or nearly so."""
    decoder = json.JSONDecoder(strict=False)
    at = text.find("{")
    loosely = _MAX_LOOSE_OBJECTS
    for _ in range(_MAX_OBJECTS):
        if at < 0:
            return
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = _find_end(text, at) if loosely > 0 else at + 1
            value = _read_loosely(text[at:end]) if loosely > 0 else None
            loosely -= 1
            end = end if isinstance(value, dict) else at + 1
        if isinstance(value, dict):
            yield cast("dict[str, JsonValue]", value)
        at = text.find("{", end)


def _find_given(reply: str, signature: Signature) -> Iterator[Mapping[str, Any]]:
    """What may be the outputs, by name, the likeliest first."""
    calls = list(_find_calls(reply))
    for _, _, call in reversed(calls):
        try:
            args = [_plain(ast.literal_eval(each)) for each in call.args]
            kwargs = {
                each.arg or "": _plain(ast.literal_eval(each.value)) for each in call.keywords
            }
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue  # it names a variable
        yield from read_call(args, kwargs, signature)
    for start, end, _ in reversed(calls):
        reply = reply[:start] + reply[end:]
    for found in reversed(list(parse_objects(reply))):
        yield found
        inner = [found[each] for each in _WRAPPERS if isinstance(found.get(each), dict)]
        if inner and len(found) == 1:
            yield cast("dict[str, Any]", inner[0])


def _find_calls(reply: str) -> Iterator[tuple[int, int, ast.Call]]:
    """Each block of code that calls FINAL: its beginning and end in the reply, and the call."""
    codes = [
        (block.start, block.end, block.code)
        for block in find_blocks(reply)
        if block.is_python or not block.language
    ]
    for start, end, code in codes or [(0, len(reply), reply.strip())]:
        tree = python_text.parse(code)
        called = [
            node
            for node in (ast.walk(tree) if tree else ())
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "FINAL"
        ]
        if called:
            yield start, end, called[-1]


def _find_end(text: str, start: int) -> int:
    depth = 0
    for match in _BRACES.finditer(text, start, start + _MAX_LOOSE):
        depth += bool(match["open"]) - bool(match["close"])
        if depth == 0 and match["close"]:
            return match.end()
    return start + 1


def _read_loosely(text: str) -> Any:
    """A value as Python would write it, also with JSON's names and comments; None for others."""

    def word(match: re.Match[str]) -> str:
        found = match.group()
        return "" if found.startswith("//") else _PYTHON_NAMES.get(found, found)

    for each in (text, _NAMES.sub(word, text)):
        try:
            return _plain(ast.literal_eval(each.strip()))
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
    return None


def _plain(value: Any) -> Any:
    """A Python literal as the JSON value that it means. Raises `ValueError` for one of none."""
    if isinstance(value, dict):
        items = cast("dict[Any, Any]", value)
        if len({str(key) for key in items}) < len(items):
            raise ValueError("two keys are the same in JSON")
        return {str(key): _plain(item) for key, item in items.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast("list[Any]", value)]
    return value


def _as_meant(values: Mapping[str, Any], signature: Signature) -> dict[str, Any]:
    """Values as their fields' types where that is beyond doubt, as in ``"3"`` for a number."""
    meant = {
        field.name: _meaning(values[field.name], field.type)
        for field in signature.outputs
        if field.name in values
    }
    return {**values, **meant}


def _meaning(value: Any, kind: ValueType) -> Any:
    return next((each for each in _meanings(value) if _fits(each, kind)), value)


def _meanings(value: Any) -> Iterator[Any]:
    yield value
    if isinstance(value, str):
        yield _read_text(value)
        if re.fullmatch(r"\s*-?\d{1,3}(,\d{3})+(\.\d+)?\s*", value):
            yield _read_text(value.replace(",", ""))
    elif isinstance(value, float) and value.is_integer():
        yield int(value)
        yield str(value)
    elif isinstance(value, bool | int | float):
        yield str(value)
    elif isinstance(value, list):
        for items in zip(*([*_meanings(item)] for item in cast("list[Any]", value)), strict=False):
            yield list(items)


def _read_text(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return _read_loosely(text)


def _fits(value: Any, kind: ValueType) -> bool:
    return not kind.check("", value)[1]


def _read_alone(reply: str, signature: Signature, *, is_tried: bool) -> Checked | None:
    """A reply that is no object: lines ``name: value``, or the value of the only output."""
    fields = signature.outputs
    lines = {
        field.name: match[1].strip().strip("`*")
        for field in fields
        if (match := _line_of(field.name).search(reply))
    }
    if len(lines) == len(fields) and (len(fields) > 1 or "\n" not in reply.strip()):
        checked = signature.check_outputs(_as_meant(lines, signature))
        if not checked.faults:
            return checked
    if len(fields) != 1:
        return None
    (field,) = fields
    text = reply.strip()
    blocks = list(find_blocks(text))
    if len(blocks) == 1 and blocks[0].start == 0 and blocks[0].end == len(text):
        text = blocks[0].code.strip()
    value = _read_text(text)
    if _fits(value, field.type) and value is not None:
        return signature.check_outputs({field.name: value})
    is_attempt = is_tried or isinstance(value, dict) or any(b.is_python for b in blocks)
    if text and not is_attempt and _fits(text, field.type):
        return signature.check_outputs({field.name: text})
    return None


def _line_of(name: str) -> re.Pattern[str]:
    return re.compile(rf"^[ \t>*`_-]*{re.escape(name)}[*`_]*[ \t]*[:=][ \t*]*(\S.*)$", re.M)
