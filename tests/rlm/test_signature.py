"""Signatures: what is read, what is refused and how, and which values fit."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, strategies as st
from inline_snapshot import snapshot

from vers_rlm_mcp.errors import InputError, SignatureError
from vers_rlm_mcp.rlm import Signature
from vers_rlm_mcp.runs.declarations import reserved_names
from vers_rlm_mcp.values import MAX_DEPTH

if TYPE_CHECKING:
    from collections.abc import Collection


def refusal(text: str, *, reserved: Collection[str] = ()) -> str:
    with pytest.raises(SignatureError) as caught:
        Signature.parse(text, reserved=reserved)
    return str(caught.value)


def output_type(text: str) -> str:
    return Signature.parse(f"a -> b: {text}").outputs[0].type.text


def faults(kind: str, value: object) -> tuple[str, ...]:
    return Signature.parse(f"-> score: {kind}").check_outputs({"score": value}).faults


def test_a_field_without_a_type_is_a_str() -> None:
    assert str(Signature.parse("task -> answer")) == "task: str -> answer: str"


def test_inputs_may_be_absent() -> None:
    assert Signature.parse("-> answer").inputs == ()


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("string", "str"),
        ("number", "float"),
        ("integer", "int"),
        ("boolean", "bool"),
        ("object", "dict"),
        ("array", "list"),
        ("Any", "any"),
        ("string[]", "list[str]"),
        ("number[][]", "list[list[float]]"),
        ("(string | number)[]", "list[str | float]"),
        ("List[Dict[str, int]]", "list[dict[str, int]]"),
        ("Optional[list[str]]", "list[str] | None"),
        ("Union[None, str, Union[int, str]]", "str | int | None"),
        ("Literal['yes', \"no\", 3, true, null]", 'Literal["yes", "no", 3, True, None]'),
        ("'low' | 'high'", 'Literal["low"] | Literal["high"]'),
        ('{"type": "array", "items": {"type": "string"}}', "list[str]"),
        ('{"type": ["string", "null"]}', "str | None"),
        ('{"type": "object", "additionalProperties": {"type": "integer"}}', "dict[str, int]"),
        ('{"enum": ["a -> b", 2]}', 'Literal["a -> b", 2]'),
        ('{"const": true}', "Literal[True]"),
        ('{"anyOf": [{"type": "boolean"}, {}]}', "bool | any"),
    ],
)
def test_types_are_read_in_the_words_of_python_javascript_and_json_schema(
    written: str, read: str
) -> None:
    assert output_type(written) == read


def test_a_question_mark_allows_none_and_leaving_out() -> None:
    signature = Signature.parse("a, b?: int -> c, d?")
    assert [f.required for f in signature.inputs + signature.outputs] == [True, False, True, False]
    assert signature.check_inputs({"a": "x"}) == {"a": "x", "b": None}
    assert signature.check_outputs({"c": "y"}).values == {"c": "y", "d": None}


def test_a_refusal_points_at_the_part_and_shows_a_right_signature() -> None:
    assert refusal("task -> score: flaot") == snapshot("""\
The signature cannot be read, character 16: unknown type 'flaot'; float may be meant.
  task -> score: flaot
                 ^
A right one: task, documents: list[str] -> answer: str, score: float, source?: str\
""")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "expected `->`"),
        ("task", "expected `->`"),
        ("a -> b -> c", "exactly one `->`"),
        ("a ->", "at least one output"),
        ("a, -> b", "expected a name"),
        ("a b -> c", "expected `->`"),
        ("a -> b c", "expected `,` or the end"),
        ("a -> b:", "expected a type"),
        ("a -> b = 3", "unexpected '='"),
        ("a, a -> b", "used twice"),
        ("a -> a", "used twice"),
        ("class -> b", "word of Python's"),
        ("a -> None", "word of Python's"),
        ("_a -> b", "leading _"),
        ("ﬁ -> b", "not a name"),
        ("a -> trajectory", "the result itself uses"),
        ("a -> final_reasoning", "the result itself uses"),
        ("a -> b: tuple[int, int]", "unknown type 'tuple'"),
        ("a -> b: __import__('os').system('true')", "unknown type '__import__'"),
        ("a -> b: list[str", "expected `]`"),
        ("a -> b: dict[str]", "expected `,` and the type of the values"),
        ("a -> b: dict[int, str]", "keys of a dict are always str"),
        ("a -> b: Literal[word]", "expected a quoted string"),
        ("a -> b: Literal[]", "unknown type"),
        ("a -> b: " + "list[" * 1_000, "nested deeper"),
        ("a -> b: {", "not JSON"),
        ("a -> b: " + '{"items":' * 100_000, "nested too deeply"),
        ('a -> b: {"type": "text"}', '"type" is one of'),
        ('a -> b: {"type": "string", "minLength": 3}', '"minLength" is not understood'),
        ('a -> b: {"type": "array", "items": 3}', "a schema is an object"),
        ('a -> b: {"enum": []}', "at least one value"),
        ('a -> b: {"enum": [1.5]}', "a choice is between"),
        ('a -> b: {"anyOf": []}', "at least one item"),
        ('a -> b: {"type": "object", "properties": []}', '"properties" is an object'),
        ("a -> b: " + '{"items":' * 20 + "{}" + ', "type": "array"}' * 20, "nested deeper"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_reason(text: str, reason: str) -> None:
    assert reason in refusal(text)


@pytest.mark.parametrize("name", [*sorted(reserved_names()), "FINAL", "FINAL_VAR"])
def test_an_input_may_not_hide_a_function_of_the_repl(name: str) -> None:
    reserved = reserved_names()
    assert "function of the REPL" in refusal(f"{name} -> answer", reserved=reserved)
    assert Signature.parse(f"task -> {name}", reserved=reserved).outputs[0].name == name


@pytest.mark.parametrize(
    ("kind", "value", "fault"),
    [
        ("float", "high", "score: expected float, got 'high'"),
        ("float", True, "score: expected float, got True"),
        ("float", float("nan"), "score: expected a finite number, got nan"),
        ("int", 3.0, "score: expected int, got 3.0"),
        ("int", True, "score: expected int, got True"),
        ("bool", 1, "score: expected bool, got 1"),
        ("str", None, "score: expected str, got None"),
        ("str", "\udcff", "score: expected a str without lone surrogates, got '\\udcff'"),
        ("int", "x" * 100, f"score: expected int, got {'x' * 80!r}… (100 characters)"),
        ("list[str]", "abc", "score: expected list[str], got 'abc'"),
        ("list[str]", ["a", 1], "score[1]: expected str, got 1"),
        ("dict[str, list[int]]", {"n": [1, {"m": 2}]}, "score.n[1]: expected int, got a dict of 1"),
        ("str | int", 2.5, "score: expected str | int, got 2.5"),
        ("list[int | None]", ["a"], "score[0]: expected int | None, got 'a'"),
        ("Literal['a', 'b']", "c", 'score: expected Literal["a", "b"], got \'c\''),
        ("list['a']", ["c"], "score[0]: expected 'a', got 'c'"),
        (
            "any",
            [float("inf")],
            "score: expected JSON (no NaN, no lone surrogates), got a list of 1",
        ),
        ('{"type": "object", "required": ["n"]}', {}, "score.n: missing"),
    ],
)
def test_a_value_of_another_type_is_a_fault_that_names_place_type_and_value(
    kind: str, value: object, fault: str
) -> None:
    assert faults(kind, value) == (fault,)


def test_an_int_is_taken_for_a_float() -> None:
    checked = Signature.parse("-> score: float").check_outputs({"score": 3})
    assert checked.faults == ()
    assert isinstance(checked.values["score"], float)


def test_members_of_an_object_are_checked_against_its_json_schema() -> None:
    schema = (
        '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], '
        '"additionalProperties": false}'
    )
    assert faults(schema, {"n": 1}) == ()
    assert faults(schema, {"n": "1", "m": 2}) == (
        "score.n: expected int, got '1'",
        "score.m: not expected here",
    )


def test_every_wrong_output_is_named_and_the_right_ones_are_kept() -> None:
    signature = Signature.parse("-> answer, score: float, source")
    checked = signature.check_outputs({"answer": "yes", "score": "high", "other": 1})
    assert checked.values == {"answer": "yes"}
    assert checked.faults == (
        "missing fields: source",
        "unknown fields: other (there are: answer, score, source)",
        "score: expected float, got 'high'",
    )


def test_wrong_inputs_are_refused_all_at_once() -> None:
    with pytest.raises(InputError) as caught:
        Signature.parse("task, n: int -> answer").check_inputs({"n": "3", "extra": 1})
    assert str(caught.value) == snapshot(
        "The inputs do not fit the signature `task: str, n: int -> answer: str`: missing inputs: "
        "task; unknown inputs: extra (there are: task, n); n: expected int, got '3'. Give exactly "
        "the inputs that the signature names, or change the signature."
    )


NAMES = st.from_regex(r"[a-z][a-z0-9]{0,8}x9", fullmatch=True)
PLAIN = st.sampled_from(["str", "int", "number", "boolean", "any", "None", "object", "list"])
CONSTANTS = st.one_of(
    st.integers(-999, 999).map(str),
    st.sampled_from(["True", "false", "None"]),
    st.text(st.characters(exclude_characters="'\\", exclude_categories=["Cs"])).map(
        lambda text: f"'{text}'"
    ),
)
TYPES = st.recursive(
    PLAIN | st.lists(CONSTANTS, min_size=1, max_size=3).map(lambda c: f"Literal[{', '.join(c)}]"),
    lambda inner: st.one_of(
        inner.map(lambda t: f"list[{t}]"),
        inner.map(lambda t: f"({t})[]"),
        inner.map(lambda t: f"dict[str, {t}]"),
        inner.map(lambda t: f"Optional[{t}]"),
        st.lists(inner, min_size=2, max_size=3).map(" | ".join),
    ),
    max_leaves=6,
)
FIELDS = st.lists(st.tuples(NAMES, TYPES), min_size=1, max_size=5, unique_by=lambda f: f[0])


@given(FIELDS, st.data())
def test_a_signature_reads_its_own_text_back(
    fields: list[tuple[str, str]], data: st.DataObject
) -> None:
    split = data.draw(st.integers(0, len(fields) - 1))
    sides = [", ".join(f"{n}: {t}" for n, t in part) for part in (fields[:split], fields[split:])]
    signature = Signature.parse(" -> ".join(sides))
    assert Signature.parse(str(signature)) == signature
    assert [f.name for f in signature.inputs + signature.outputs] == [name for name, _ in fields]


@given(st.text() | st.text(alphabet="ab->:,[]|?(){}'\"\\ list"))
def test_any_text_is_read_or_refused_and_nothing_else_happens(text: str) -> None:
    try:
        signature = Signature.parse(text)
    except SignatureError:
        return
    assert Signature.parse(str(signature)) == signature


@pytest.mark.parametrize("depth", [MAX_DEPTH, MAX_DEPTH + 1, 100_000])
def test_what_a_journal_could_not_hold_is_refused(depth: int):
    value: Any = 1
    for _ in range(depth):
        value = [value]
    checked = Signature.parse("-> x: any").check_outputs({"x": value})
    if depth > MAX_DEPTH:
        assert checked.faults == (f"x is nested deeper than {MAX_DEPTH} levels",)
    else:
        assert checked.values == {"x": value}
    while value != 1:
        value = value.pop()


DEFINED = {
    "type": "object",
    "properties": {"items": {"type": "array", "items": {"$ref": "#/$defs/Item"}}},
    "required": ["items"],
    "$defs": {
        "Item": {
            "type": "object",
            "properties": {"n": {"$ref": "#/$defs/N", "description": "How many."}},
            "required": ["n"],
        },
        "N": {"type": "integer"},
    },
}


def test_references_of_a_schema_are_followed() -> None:
    signature = Signature.parse(f"-> found: {json.dumps(DEFINED)}")
    assert signature.check_outputs({"found": {"items": [{"n": 1}]}}).faults == ()
    assert signature.check_outputs({"found": {"items": [{"n": "1"}]}}).faults == (
        "found.items[0].n: expected int, got '1'",
    )
    assert Signature.parse(str(signature)) == signature


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"$ref": "#/$defs/A"}, '"$ref" "#/$defs/A" is not defined in this schema'),
        ({"$ref": "https://a.example/s"}, "is not defined in this schema"),
        (
            {
                "$ref": "#/$defs/A",
                "$defs": {"A": {"type": "array", "items": {"$ref": "#/$defs/A"}}},
            },
            '"#/$defs/A" refers to itself',
        ),
        (
            {
                "$ref": "#/$defs/0",
                "$defs": {
                    **{str(n): {"anyOf": [{"$ref": f"#/$defs/{n + 1}"}] * 4} for n in range(12)},
                    "12": {"type": "string"},
                },
            },
            "more than 100",
        ),
    ],
)
def test_references_that_cannot_be_followed_are_refused(schema: Any, message: str) -> None:
    with pytest.raises(SignatureError) as error:
        Signature.parse(f"-> a: {json.dumps(schema)}")
    assert message in str(error.value)


@pytest.mark.parametrize("kind", ["set[str]", "Set[int]", "tuple[str, int]", "frozenset", "set"])
def test_a_type_that_json_has_not_is_refused_with_the_one_that_it_has(kind: str) -> None:
    with pytest.raises(SignatureError, match=r"write list\[T\] instead"):
        Signature.parse(f"-> a: {kind}")
