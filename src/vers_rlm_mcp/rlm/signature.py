"""Signatures: what goes into a run and what has to come out, as ``inputs -> outputs``.

    signature  = fields "->" fields
    fields     = [field {"," field}]              at least one output
    field      = name ["?"] [":" type]            str without a type; "?" allows None
    type       = part {"|" part}
    part       = atom {"[]"}
    atom       = plain name (str, string, int, number, bool, list, dict, any, ...)
               | "list[" type "]" | "dict[str," type "]" | "Optional[" type "]"
               | "Union[" type {"," type} "]" | "Literal[" value {"," value} "]"
               | string literal | JSON Schema object | "(" type ")"

Nothing of a signature is ever evaluated.
"""

from __future__ import annotations

import keyword
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vers_rlm_mcp.errors import InputError
from vers_rlm_mcp.values import MAX_DEPTH, is_too_deep

from .grammar import Scanner, TypeParser
from .value_types import FILE_TYPES, NULL, STR, ValueType, union

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from pydantic import JsonValue

    from .grammar import Token

FINALS = frozenset({"FINAL", "FINAL_VAR"})
"""The functions that end every run."""

RESERVED_OUTPUTS = frozenset({"trajectory", "final_reasoning"})
"""Names that the result of a run reserves for itself."""


@dataclass(frozen=True, slots=True)
class Field:
    """A named input or output."""

    name: str
    type: ValueType

    @property
    def required(self) -> bool:
        """Whether it must be given. One whose type allows None may be left out, and is None."""
        return not self.type.nullable

    def __str__(self) -> str:
        return f"{self.name}: {self.type.text}"


@dataclass(frozen=True, slots=True)
class Checked:
    """The values that fit their fields, by name, and what is wrong with the others."""

    values: dict[str, JsonValue]
    faults: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Signature:
    """The inputs and outputs of a run. Parsing its `str` gives an equal signature."""

    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]

    @classmethod
    def parse(cls, text: str, *, reserved: Collection[str] = ()) -> Signature:
        """Read a signature. Raises `SignatureError`, which points at the part that is wrong.

        No input may have a `reserved` name: its variable would hide a function of the REPL.
        """
        return _SignatureParser(Scanner(text), reserved).signature()

    def __str__(self) -> str:
        inputs, outputs = (", ".join(map(str, side)) for side in (self.inputs, self.outputs))
        return f"{inputs} -> {outputs}".lstrip()

    def check_inputs(self, inputs: Mapping[str, object]) -> dict[str, JsonValue]:
        """The value of every input; None for an optional one that was left out.

        Raises `InputError`, which names everything that is wrong at once.
        """
        checked = _check(self.inputs, inputs, "inputs")
        if checked.faults:
            raise InputError(
                f"The inputs do not fit the signature `{self}`: {'; '.join(checked.faults)}. "
                "Give exactly the inputs that the signature names, or change the signature."
            )
        return checked.values

    def check_outputs(self, outputs: Mapping[str, object]) -> Checked:
        """The outputs that fit, and what is wrong with the others."""
        return _check(self.outputs, outputs, "fields")

    def file_paths(self, outputs: Mapping[str, JsonValue]) -> tuple[str, ...]:
        """The paths of the files that outputs hand over."""
        values = [outputs.get(field.name) for field in self.outputs if field.type.has_files]
        flat = [
            item for value in values for item in (value if isinstance(value, list) else [value])
        ]
        return tuple(dict.fromkeys(path for path in flat if isinstance(path, str)))


def _check(fields: Sequence[Field], given: Mapping[str, object], noun: str) -> Checked:
    values: dict[str, JsonValue] = {}
    faults: list[str] = []
    names = [field.name for field in fields]
    if missing := [f.name for f in fields if f.required and f.name not in given]:
        faults.append(f"missing {noun}: {', '.join(missing)}")
    if unknown := [name for name in given if name not in names]:
        known = ", ".join(names) or "none"
        faults.append(f"unknown {noun}: {', '.join(unknown)} (there are: {known})")
    for field in fields:
        if field.name in missing:
            continue
        value, wrong = None, (f"{field.name} is nested deeper than {MAX_DEPTH} levels",)
        if not is_too_deep(given.get(field.name)):
            value, wrong = field.type.check(field.name, given.get(field.name))
        faults += wrong
        if not wrong:
            values[field.name] = value
    return Checked(values, tuple(faults))


class _SignatureParser(TypeParser):
    """Reads fields, and refuses names that a run could not use."""

    def __init__(self, scanner: Scanner, reserved: Collection[str]) -> None:
        super().__init__(scanner)
        self._reserved = {*reserved, *FINALS}

    def signature(self) -> Signature:
        inputs = self._fields(until="->")
        if not self.take("->"):
            self.fail("expected `->` between the inputs and the outputs")
        outputs = self._fields(until="")
        if self.is_at("->"):
            self.fail("a signature has exactly one `->`")
        if self.token.kind != "end":
            self.fail("expected `,` or the end")
        if not outputs:
            self.fail("expected at least one output after `->`")
        return self._distinct(inputs, outputs)

    def _fields(self, until: str) -> list[tuple[Token, Field]]:
        fields: list[tuple[Token, Field]] = []
        if self.token.text == until or self.token.kind == "end":
            return fields
        fields.append(self._field())
        while self.take(","):
            fields.append(self._field())
        return fields

    def _field(self) -> tuple[Token, Field]:
        token = self.expect("name", "a name")
        optional = self.take("?")
        kind = self.type() if self.take(":") else STR
        return token, Field(token.text, union([kind, NULL]) if optional else kind)

    def _distinct(
        self, inputs: list[tuple[Token, Field]], outputs: list[tuple[Token, Field]]
    ) -> Signature:
        seen: set[str] = set()
        for token, field in inputs + outputs:
            if field.name in seen:
                self.fail("this name is used twice; every input and output needs its own", token)
            seen.add(field.name)
            self._check_name(token)
        for token, field in inputs:
            if field.name in self._reserved:
                self.fail("this is a function of the REPL; give the input another name", token)
            if field.type.has_files:
                self.fail("an input cannot be a `file`; give it as a file of the run", token)
        for token, field in outputs:
            parts = {part.text for part in field.type.alternatives or (field.type,)}
            if field.type.has_files and not parts <= {*FILE_TYPES, NULL.text}:
                self.fail("a file is an output of its own: `file` or `list[file]`", token)
            if field.name in RESERVED_OUTPUTS:
                self.fail("the result itself uses this name; give the output another", token)
        return Signature(tuple(f for _, f in inputs), tuple(f for _, f in outputs))

    def _check_name(self, token: Token) -> None:
        name = token.text
        if keyword.iskeyword(name):
            self.fail("this is a word of Python's own; give it another name", token)
        if name.startswith("_"):
            self.fail("names with a leading _ belong to the REPL; give it another name", token)
        # Python reads `ﬁ` in code as `fi`: a variable of that name could not be reached.
        if not name.isidentifier() or unicodedata.normalize("NFKC", name) != name:
            self.fail("this is not a name that Python code can use", token)
