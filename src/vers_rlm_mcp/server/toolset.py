"""What every tool here is: strict about arguments, plain in errors, its answer readable twice.

The SDK's own `Tool` lets an invented argument pass in silence, tells the model nothing about an
exception, and answers with the JSON of the result as text. `StrictTool` changes these three, by
overriding the two methods through which a tool is made and run.
"""

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Self, cast

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError, UnexpectedToolError
from mcp.server.mcpserver.tools import Tool
from mcp_types import CallToolResult, ResourceLink, TextContent, ToolAnnotations
from mcp_types.version import is_version_at_least
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails

from vers_rlm_mcp.errors import VersRlmError

MAX_FAULTS = 5
"""Wrong arguments that one error names: enough to fix a call, short enough to read."""

LINKS_SINCE = "2025-06-18"
"""The revision from which a result may link to resources."""

Json = dict[str, Any]


class Answer(BaseModel):
    """The result of a tool. Its fields and its text each carry all of it: clients show only one."""

    def text(self) -> str:
        """The whole answer, as a model or a person reads it."""
        raise NotImplementedError

    def links(self) -> list[ResourceLink]:
        """What more there is to read."""
        return []


class Options(BaseModel):
    """An argument with fields of its own, as strict about their names as a tool is."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, value: object) -> object:
        if isinstance(value, dict):
            _refuse(cast("Json", value), cls.model_fields)
        return cast("object", value)


class StrictTool(Tool):
    """A tool whose failures tell the model what to do next."""

    @classmethod
    def of(
        cls,
        function: Callable[..., Awaitable[Answer]],
        name: str,
        title: str,
        annotations: ToolAnnotations,
    ) -> Self:
        """Make a tool of a function; its docstring is the description that the model reads."""
        description = " ".join(inspect.cleandoc(function.__doc__ or "").split())
        tool = cls.from_function(
            function, name=name, title=title, description=description, annotations=annotations
        )
        assert isinstance(tool, cls)
        tool.parameters = _slim(tool.parameters)
        if tool.fn_metadata.output_schema:
            tool.fn_metadata.output_schema = _slim(tool.fn_metadata.output_schema, output=True)
        return tool

    async def run(
        self,
        arguments: dict[str, Any],
        context: Context[Any, Any],
        convert_result: bool = False,
    ) -> Any:
        """Run the tool.

        Raises:
            ToolError: With a text to act on: wrong arguments, or any error of this project.
            UnexpectedToolError: For everything else; the SDK logs it with its traceback.
        """
        try:
            _refuse(arguments, self.parameters["properties"])
            answer = await super().run(arguments, context)
        except ValueError as error:
            raise ToolError(f"{self.name}: {error}") from error
        except UnexpectedToolError as error:
            raise self._explained(error.__cause__) from error.__cause__
        except ToolError as error:
            if isinstance(error.__cause__, ValidationError):
                raise ToolError(self._faults(error.__cause__)) from error.__cause__
            raise
        if not (convert_result and isinstance(answer, Answer)):
            return answer
        knows_links = is_version_at_least(context.protocol_version or "", LINKS_SINCE)
        return as_result(answer, links=knows_links)

    def _explained(self, cause: BaseException | None) -> ToolError:
        if isinstance(cause, VersRlmError):
            return ToolError(str(cause))
        return UnexpectedToolError(
            f"{self.name} failed on a fault of this server ({type(cause).__name__}), which has "
            "logged it and goes on. The call may have had an effect: look before you repeat it."
        )

    def _faults(self, error: ValidationError) -> str:
        faults = error.errors(include_url=False)
        lines = [_fault(fault) for fault in faults[:MAX_FAULTS]]
        if len(faults) > MAX_FAULTS:
            lines.append(f"… and {len(faults) - MAX_FAULTS} more")
        return f"{self.name}: " + "; ".join(lines)


def as_result(answer: Answer, *, links: bool = True, is_error: bool = False) -> CallToolResult:
    """An answer as a call's result, with links where the client knows them."""
    return CallToolResult(
        content=[TextContent(text=answer.text()), *(answer.links() if links else ())],
        structured_content=answer.model_dump(mode="json", exclude_none=True),
        is_error=is_error,
    )


def _refuse(arguments: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raise `ValueError` naming the arguments that do not exist, those meant, and all there are."""
    by_folded = {_fold(name): name for name in known}
    parts: list[str] = []
    for name in arguments.keys() - by_folded.values():
        close = get_close_matches(_fold(name), by_folded, n=1)
        meant = f" (did you mean {by_folded[close[0]]!r}?)" if close else ""
        parts.append(f"there is no argument {name!r}{meant}")
    if parts:
        takes = ", ".join(by_folded.values()) or "no arguments"
        raise ValueError(f"{'; '.join(sorted(parts))}. It takes: {takes}.")


def _fold(name: str) -> str:
    return name.replace("_", "").replace("-", "").casefold()


def _fault(fault: ErrorDetails) -> str:
    path = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "missing":
        return f"{path!r} is missing"
    return f"{path!r}: {fault['msg'].removeprefix('Value error, ')}"


def _slim(schema: Json, definitions: Json | None = None, *, output: bool = False) -> Json:
    """A model's schema without what costs tokens, or clients, and tells a model nothing.

    That is titles, the models' docstrings, null as a way to leave an argument out, defaults that
    are empty, defaults and limits that are said in words, lower bounds and that no other arguments
    are taken, which whoever tries is told, fields of an output that may be anything, which of them
    are always there and what is inside them, which the output itself tells, and references, which
    some clients do not follow: each is replaced by its target.
    """
    definitions = definitions or cast("Json", schema.get("$defs", {}))
    if "$ref" in schema:
        schema = definitions[schema["$ref"].removeprefix("#/$defs/")]
    left_out = {"$defs", "title", "description", "minimum", "exclusiveMinimum"}
    if output:
        left_out.add("required")
    slim = {key: schema[key] for key in schema if key not in left_out}
    if slim.get("additionalProperties") is False:
        del slim["additionalProperties"]
    if "properties" in slim:
        fields = {
            name: _slim_field(field, definitions, output=output)
            for name, field in slim["properties"].items()
        }
        slim["properties"] = {name: field for name, field in fields.items() if field}
    if "items" in slim:
        slim["items"] = _slim(slim["items"], definitions, output=output)
    return slim


def _slim_field(field: Json, definitions: Json, *, output: bool) -> Json:
    options = cast("list[Json]", field.get("anyOf", []))
    kept = [
        _slim(option, definitions, output=output)
        for option in options
        if option != {"type": "null"}
    ]
    slim = _slim(field, definitions, output=output)
    slim.pop("anyOf", None)
    slim |= kept[0] if len(kept) == 1 else {"anyOf": kept} if kept else {}
    if output:
        return _closed(slim)
    if "description" in field:
        slim["description"] = field["description"]
    said = field.get("description", "")
    if not slim.get("default", True) or "Default" in said:
        slim.pop("default", None)
    if ", max " in said:
        del slim["maximum"]
    return slim


def _closed(field: Json) -> Json:
    """A field of an output without what is inside it."""
    return {key: field[key] for key in ("type", "anyOf") if key in field}
