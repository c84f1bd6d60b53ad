"""Tools: declared by a decorator on their handlers, strict about arguments, plain in errors.

The SDK's own `Tool` ignores unknown arguments, hides every exception from the model, and answers
with the JSON of the result as text. `StrictTool` changes these three.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast, get_args

from mcp.server.mcpserver.exceptions import ToolError, UnexpectedToolError
from mcp.server.mcpserver.tools import Tool
from mcp.server.mcpserver.utilities.func_metadata import FuncMetadata
from mcp_types import CallToolResult, ResourceLink, TextContent, ToolAnnotations
from mcp_types.version import is_version_at_least
from pydantic import Field, ValidationError

from vers_rlm_mcp.errors import UnknownHandle, VersRlmError

from .application import application
from .arguments import read_arguments
from .bounds import as_json, dump, fit_fields, fit_text, shorten, shorten_lines
from .handles import explain_handles
from .known_clients import KnownClient, client_of
from .principals import caller
from .request_faults import describe_faults
from .schemas import input_schema, output_schema

if TYPE_CHECKING:
    from mcp.server.mcpserver import Context

READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
ADDS = ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=False)
REPLACES = ToolAnnotations(read_only_hint=False, destructive_hint=True, open_world_hint=False)
RUNS_CODE = ToolAnnotations(read_only_hint=False, destructive_hint=True, open_world_hint=True)

CURRENT = "Default: current VM"
"""The description of an argument that must be given where there is no current machine."""

META_LOAD = "anthropic/alwaysLoad"
"""The key in a tool's `_meta` with which Claude Code does not defer the tool behind a search."""

ALWAYS_LOADED = ("vers_rlm", "rlmResult", "exec", "python")
"""The tools for which that is worth its tokens."""

ERROR_CHARS = 10_000
"""Characters of an error, which may quote what was sent or what a machine wrote."""

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

    def as_result(
        self,
        client: KnownClient | None = None,
        keep: Callable[[str], str] | None = None,
        *,
        links: bool = True,
        is_error: bool = False,
    ) -> CallToolResult:
        """The result of a call, as long as its client shows it.

        Args:
            client: The client. By default, one that is not known.
            keep: Keeps a text that is too long, and returns the address where it can be read.
            links: Whether the client understands links.
            is_error: Whether the call failed.
        """
        fields, text = _bound(self, client or KnownClient(), keep)
        return CallToolResult(
            content=[TextContent(text=text), *(self.links if links else ())],
            structured_content=fields,
            is_error=is_error,
        )


def _bound(
    answer: Answer[Any], client: KnownClient, keep: Callable[[str], str] | None
) -> tuple[dict[str, Any], str]:
    """The fields and the text of an answer, cut if they are longer than the client shows."""
    fields, text = as_json(without_none(answer.fields)), as_json(answer.text)
    room = client.room
    shown = shorten_lines(text, client.lines) if client.lines else text
    size = client.measure(dump(fields)) + client.measure(text)
    if size <= room and shown == text:
        return fields, text
    where = f", which the resource {keep(text)} has" if keep else ""
    notice = f"[cut: this answer has {len(text):,} characters as text{where}]"
    left = room - 3 * len(notice)
    fields = {**fit_fields(fields, left // 2, client.measure), "cut": notice}
    left = room - client.measure(dump(fields)) - 2 * len(notice)
    return fields, f"{fit_text(shown, left, client.measure)}\n{notice}"


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
        *,
        without_current: str | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> Callable[[HandlerT], HandlerT]:
        """Declare the decorated handler as a tool.

        Its parameters are the tool's arguments, its docstring is the description that models read,
        and the fields of its `Answer` are the output schema.

        Args:
            name: The tool's name.
            title: What a user sees.
            annotations: What it may change.
            example: Arguments of a typical call, which errors about arguments show.
            without_current: The description where there is no current machine, if it differs; ""
                if the tool makes no sense there.
            meta: What only some clients understand.
        """

        def declare(handler: HandlerT) -> HandlerT:
            tool = StrictTool.of(handler, name, title, annotations)
            tool.example = dict(example or {})
            tool.without_current = without_current
            tool.meta = dict(meta) if meta else None
            self.tools.append(tool)
            return handler

        return declare


class StrictTool(Tool):
    """A tool whose errors tell the model what to do next."""

    example: dict[str, Any] = Field(default_factory=dict)
    """Arguments of a typical call, which errors about arguments show."""
    without_current: str | None = None
    """The description where there is no current machine, if it differs."""

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

    def where_no_machine_is_current(self) -> Self | None:
        """The tool as it is offered where each call names its machine, if it is."""
        if self.without_current == "":
            return None
        parameters = deepcopy(self.parameters)
        for name, field in parameters["properties"].items():
            if field.get("description") == CURRENT:
                del field["description"]
                parameters.setdefault("required", []).append(name)
        described = self.without_current or self.description
        return self.model_copy(update={"parameters": parameters, "description": described})

    def always_loaded(self) -> Self:
        """The tool as it is offered to clients that are to show their model all of it at once."""
        if self.name not in ALWAYS_LOADED:
            return self
        return self.model_copy(update={"meta": {**(self.meta or {}), META_LOAD: True}})

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
            raise await self._translate(error.__cause__, arguments, context) from error.__cause__
        except ToolError as error:
            if isinstance(error.__cause__, ValidationError):
                faults = describe_faults(error.__cause__.errors(include_url=False))
                raise ToolError(self._explain(faults)) from error.__cause__
            raise
        if not (convert_result and isinstance(answer, Answer)):
            return answer
        has_links = is_version_at_least(context.protocol_version or "", LINKS_SINCE)
        return cast("Answer[Any]", answer).as_result(
            client_of(context).with_tool(self.meta), partial(_keep, context), links=has_links
        )

    def _explain(self, faults: str) -> str:
        text = f"{self.name}: {faults.removesuffix('.')}."
        return f"{text} Example: {json.dumps(self.example)}" if self.example else text

    async def _translate(
        self, cause: BaseException | None, arguments: Mapping[str, Any], context: Context[Any, Any]
    ) -> ToolError:
        if isinstance(cause, UnknownHandle):
            meant = await explain_handles(application(context), str(cause), arguments)
            return ToolError(as_json(shorten(f"{meant} {cause}".strip(), ERROR_CHARS)))
        if isinstance(cause, VersRlmError):
            return ToolError(as_json(shorten(str(cause), ERROR_CHARS)))
        return UnexpectedToolError(
            f"{self.name} failed on a fault of this server ({type(cause).__name__}), which was "
            "logged. The call may have had an effect: look before you repeat it."
        )


def _keep(context: Context[Any, Any], text: str) -> str:
    return application(context).kept_answers.keep(caller(), text)


def without_none(fields: Mapping[str, object]) -> dict[str, Any]:
    """The fields that have a value."""
    return {name: value for name, value in fields.items() if value is not None}
