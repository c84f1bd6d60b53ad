"""Tools: declared by a decorator on their handlers, strict about arguments, plain in errors.

The SDK's own `Tool` ignores unknown arguments, hides every exception from the model, and answers
with the JSON of the result as text. `StrictTool` changes these three.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast, get_args

from mcp.server.mcpserver.exceptions import ToolError, UnexpectedToolError
from mcp.server.mcpserver.tools import Tool
from mcp.server.mcpserver.utilities.func_metadata import FuncMetadata
from mcp_types import CallToolResult, ResourceLink, TextContent, ToolAnnotations
from mcp_types.version import is_version_at_least
from pydantic import Field, ValidationError

from vers_rlm_mcp.errors import VersRlmError

from .arguments import read_arguments
from .request_faults import describe_faults
from .schemas import input_schema, output_schema

if TYPE_CHECKING:
    from mcp.server.mcpserver import Context

READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
ADDS = ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=False)
REPLACES = ToolAnnotations(read_only_hint=False, destructive_hint=True, open_world_hint=False)
RUNS_CODE = ToolAnnotations(read_only_hint=False, destructive_hint=True, open_world_hint=True)

TEXT_LIMIT = 40_000
"""Characters of a long text in an answer: some 10,000 tokens."""

LINKS_SINCE = "2025-06-18"
"""The protocol revision from which a result may link to resources."""

FieldsT_co = TypeVar("FieldsT_co", bound=Mapping[str, object], covariant=True)


@dataclass(frozen=True, slots=True)
class Answer(Generic[FieldsT_co]):
    """What a tool answers. Fields and text each carry all of it, since clients show only one."""

    fields: FieldsT_co
    """A `TypedDict`, from which the output schema is made. What is None is not sent."""
    text: str
    links: Sequence[ResourceLink] = ()

    def as_result(self, *, links: bool = True, is_error: bool = False) -> CallToolResult:
        """The result of a call, with links if the client understands them."""
        return CallToolResult(
            content=[TextContent(text=self.text), *(self.links if links else ())],
            structured_content=without_none(self.fields),
            is_error=is_error,
        )


HandlerT = TypeVar("HandlerT", bound=Callable[..., Awaitable[Answer[Any]]])


class Toolset:
    """Tools in the order in which clients list them."""

    def __init__(self) -> None:
        self.tools: list[StrictTool] = []

    def tool(
        self,
        name: str,
        title: str,
        annotations: ToolAnnotations,
        example: Mapping[str, Any] | None = None,
    ) -> Callable[[HandlerT], HandlerT]:
        """Declare the decorated handler as a tool.

        Its parameters are the tool's arguments, its docstring is the description that models read,
        and the fields of its `Answer` are the output schema. The example goes with errors about
        arguments.
        """

        def declare(handler: HandlerT) -> HandlerT:
            tool = StrictTool.of(handler, name, title, annotations)
            tool.example = dict(example or {})
            self.tools.append(tool)
            return handler

        return declare


class StrictTool(Tool):
    """A tool whose errors tell the model what to do next."""

    example: dict[str, Any] = Field(default_factory=dict)
    """Arguments of a typical call, which errors about arguments show."""

    @classmethod
    def of(
        cls,
        handler: Callable[..., Awaitable[Answer[Any]]],
        name: str,
        title: str,
        annotations: ToolAnnotations,
    ) -> Self:
        """Make a tool of its handler; see `Toolset.tool`."""
        description = " ".join(inspect.cleandoc(handler.__doc__ or "").split())
        tool = cls.from_function(
            handler,
            name=name,
            title=title,
            description=description,
            annotations=annotations,
            structured_output=False,  # the SDK does not know `Answer`
        )
        assert isinstance(tool, cls)
        tool.parameters = input_schema(tool.parameters)
        (fields,) = get_args(inspect.signature(handler, eval_str=True).return_annotation)
        metadata = FuncMetadata(arg_model=tool.fn_metadata.arg_model, output_model=fields)
        tool.fn_metadata.output_schema = output_schema(metadata.output_schema or {})
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
        known = self.fn_metadata.arg_model.model_fields
        fields = {name: known[name] for name in self.parameters["properties"]}
        try:
            arguments = read_arguments(arguments, fields)
        except ValueError as error:
            raise ToolError(self._explain(str(error))) from error
        try:
            answer = await super().run(arguments, context)
        except UnexpectedToolError as error:
            raise self._translate_fault(error.__cause__) from error.__cause__
        except ToolError as error:
            if isinstance(error.__cause__, ValidationError):
                faults = describe_faults(error.__cause__.errors(include_url=False))
                raise ToolError(self._explain(faults)) from error.__cause__
            raise
        if not (convert_result and isinstance(answer, Answer)):
            return answer
        has_links = is_version_at_least(context.protocol_version or "", LINKS_SINCE)
        return cast("Answer[Any]", answer).as_result(links=has_links)

    def _explain(self, faults: str) -> str:
        text = f"{self.name}: {faults.removesuffix('.')}."
        return f"{text} Example: {json.dumps(self.example)}" if self.example else text

    def _translate_fault(self, cause: BaseException | None) -> ToolError:
        if isinstance(cause, VersRlmError):
            return ToolError(str(cause))
        return UnexpectedToolError(
            f"{self.name} failed on a fault of this server ({type(cause).__name__}), which was "
            "logged. The call may have had an effect: look before you repeat it."
        )


def without_none(fields: Mapping[str, object]) -> dict[str, Any]:
    """The fields that have a value."""
    return {name: value for name, value in fields.items() if value is not None}


def shorten(text: str, limit: int) -> str:
    """At most about `limit` characters of a text: its beginning and its end."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n… {len(text) - 2 * half:,} characters left out …\n{text[-half:]}"
