"""The schemas of tools, reduced to what a model needs."""

from __future__ import annotations

from typing import Any, Final, cast

from pydantic import Field

Json = dict[str, Any]

IN_WORDS: Final[Any] = Field(json_schema_extra={"inWords": True})
"""Marks an argument whose description says its default and maximum: its schema omits both."""

OMITTED: Final = ("$defs", "title", "description", "minimum", "exclusiveMinimum", "inWords")

NULL: Final = {"type": "null"}


def input_schema(schema: Json, definitions: Json | None = None) -> Json:
    """The schema of a tool's arguments.

    It omits titles, the docstrings of models, null as a way to leave an argument out, empty
    defaults, lower bounds, what is marked `IN_WORDS`, and that there are no other arguments, which
    an error says. References, which some clients do not follow, are replaced by their targets.
    """
    definitions = definitions or cast("Json", schema.get("$defs", {}))
    if "$ref" in schema:
        schema = definitions[schema["$ref"].removeprefix("#/$defs/")]
    slim = {key: value for key, value in schema.items() if key not in OMITTED}
    if slim.get("additionalProperties") is False:
        del slim["additionalProperties"]
    if "properties" in slim:
        slim["properties"] = {
            name: _argument(field, definitions) for name, field in slim["properties"].items()
        }
    if "items" in slim:
        slim["items"] = input_schema(slim["items"], definitions)
    return slim


def output_schema(schema: Json) -> Json:
    """The schema of a tool's answer: the type of each field, unless it may be anything.

    Which fields are always there, and what is inside them, the answers show.
    """
    fields = {name: _type(field) for name, field in schema["properties"].items()}
    return {
        "properties": {name: field for name, field in fields.items() if field},
        "type": "object",
    }


def _argument(field: Json, definitions: Json) -> Json:
    slim = input_schema(field, definitions)
    options = [option for option in slim.pop("anyOf", ()) if option != NULL]
    kinds = [input_schema(option, definitions) for option in options]
    slim |= kinds[0] if len(kinds) == 1 else {"anyOf": kinds} if kinds else {}
    if "description" in field:
        slim["description"] = field["description"]
    if field.get("inWords") or not slim.get("default", True):
        slim.pop("default", None)
    if field.get("inWords"):
        slim.pop("maximum", None)
    return slim


def _type(field: Json) -> Json:
    (kind,) = [option for option in field.get("anyOf", [field]) if option != NULL]
    return {"type": kind["type"]} if "type" in kind else {}
