"""The tools that the suite calls: every kind of content, notifications, and the client's answers.

Names and texts are those of the suite.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Annotated, Any

import anyio
from mcp.server.mcpserver import Audio, Context, Image
from mcp.server.mcpserver.exceptions import ToolError
from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata
from mcp_types import (
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    ClientCapabilities,
    CreateMessageRequest,
    CreateMessageRequestParams,
    CreateMessageResult,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitResult,
    EmbeddedResource,
    MissingRequiredClientCapabilityErrorData,
    SamplingCapability,
    SamplingMessage,
    TextContent,
    TextResourceContents,
)
from pydantic import Field

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)
"""One pixel."""

WAV = b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x40\x1f\0\0\x40\x1f\0\0\1\0\x08\0data\0\0\0\0"
"""No sound, at 8 kHz."""

PAUSE_SECONDS = 0.05
"""Between two notifications, as the suite asks."""

SCHEMA_2020_12: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}

DEFAULTS: dict[str, Any] = {
    "name": {"type": "string", "default": "John Doe"},
    "age": {"type": "integer", "default": 30},
    "score": {"type": "number", "default": 95.5},
    "status": {
        "type": "string",
        "enum": ["active", "inactive", "pending"],
        "default": "active",
    },
    "verified": {"type": "boolean", "default": True},
}

OPTIONS = ["option1", "option2", "option3"]
TITLED = [{"const": f"value{n}", "title": f"Option {n}"} for n in (1, 2, 3)]

ENUMS: dict[str, Any] = {
    "untitledSingle": {"type": "string", "enum": OPTIONS},
    "titledSingle": {"type": "string", "oneOf": TITLED},
    "legacyEnum": {
        "type": "string",
        "enum": ["opt1", "opt2", "opt3"],
        "enumNames": ["Option One", "Option Two", "Option Three"],
    },
    "untitledMulti": {"type": "array", "items": {"type": "string", "enum": OPTIONS}},
    "titledMulti": {"type": "array", "items": {"anyOf": TITLED}},
}

USER: dict[str, Any] = {
    "username": {"type": "string", "description": "User's response"},
    "email": {"type": "string", "description": "User's email address"},
}


def mount(server: MCPServer[Any]) -> None:
    """Add the tools to a server."""
    for tool in (
        test_simple_text,
        test_image_content,
        test_audio_content,
        test_embedded_resource,
        test_multiple_content_types,
        test_error_handling,
        test_tool_with_logging,
        test_logging_tool,
        test_tool_with_progress,
        test_sampling,
        test_elicitation,
        test_elicitation_sep1034_defaults,
        test_elicitation_sep1330_enums,
        test_streaming_elicitation,
        test_missing_capability,
        test_trigger_tool_change,
        test_trigger_prompt_change,
        test_header,
        json_schema_2020_12_tool,
    ):
        server.add_tool(tool, structured_output=False)
    listed = server._tool_manager.get_tool("json_schema_2020_12_tool")  # pyright: ignore[reportPrivateUsage]
    assert listed
    listed.parameters = SCHEMA_2020_12


def test_simple_text() -> str:
    """Answer with text."""
    return "This is a simple text response for testing."


def test_image_content() -> Image:
    """Answer with an image."""
    return Image(data=PNG, format="png")


def test_audio_content() -> Audio:
    """Answer with a sound."""
    return Audio(data=WAV, format="wav")


def test_embedded_resource() -> EmbeddedResource:
    """Answer with a resource."""
    return _embedded(
        "test://embedded-resource", "text/plain", "This is an embedded resource content."
    )


def test_multiple_content_types() -> list[TextContent | Image | EmbeddedResource]:
    """Answer with three kinds of content."""
    return [
        TextContent(text="Multiple content types test:"),
        Image(data=PNG, format="png"),
        _embedded(
            "test://mixed-content-resource", "application/json", '{"test":"data","value":123}'
        ),
    ]


def test_error_handling() -> str:
    """Fail."""
    raise ToolError("This tool intentionally returns an error for testing")


async def test_tool_with_logging(context: Context) -> str:
    """Log three times."""
    for message in ("execution started", "processing data", "execution completed"):
        await context.info(f"Tool {message}")  # pyright: ignore[reportDeprecated]
        await anyio.sleep(PAUSE_SECONDS)
    return "Logged."


async def test_logging_tool(context: Context) -> str:
    """Log once."""
    await context.info("A message")  # pyright: ignore[reportDeprecated]
    return "Logged."


async def test_tool_with_progress(context: Context) -> str:
    """Report progress three times."""
    for progress in (0, 50, 100):
        await context.report_progress(progress, 100)
        await anyio.sleep(PAUSE_SECONDS)
    return "Done."


async def test_sampling(prompt: str, context: Context) -> str:
    """Ask the client's model."""
    message = SamplingMessage(role="user", content=TextContent(text=prompt))
    params = CreateMessageRequestParams(messages=[message], max_tokens=100)
    result = await context.session.send_request(
        CreateMessageRequest(params=params), CreateMessageResult, metadata=_related(context)
    )
    assert isinstance(result.content, TextContent)
    return f"LLM response: {result.content.text}"


async def test_elicitation(message: str, context: Context) -> str:
    """Ask the client's user."""
    result = await _elicit(context, message, USER, required=["username", "email"])
    return f"User response: action={result.action}, content={result.content}"


async def test_elicitation_sep1034_defaults(context: Context) -> str:
    """Ask the client's user, with defaults."""
    result = await _elicit(context, "Please check these values", DEFAULTS)
    return f"Elicitation completed: action={result.action}, content={result.content}"


async def test_elicitation_sep1330_enums(context: Context) -> str:
    """Ask the client's user to choose."""
    result = await _elicit(context, "Please choose", ENUMS)
    return f"Elicitation completed: action={result.action}, content={result.content}"


async def test_streaming_elicitation(context: Context) -> str:
    """Answer on a stream that carries notifications and no request of the server's own."""
    await context.report_progress(1, 1)
    return "Done."


def test_missing_capability(context: Context) -> str:
    """Need a client that offers sampling."""
    if not (context.client_capabilities and context.client_capabilities.sampling):
        missing = MissingRequiredClientCapabilityErrorData(
            required_capabilities=ClientCapabilities(sampling=SamplingCapability())
        )
        raise MCPError(
            MISSING_REQUIRED_CLIENT_CAPABILITY,
            "This tool needs sampling",
            missing.model_dump(by_alias=True, mode="json", exclude_none=True),
        )
    return "The client offers sampling."


async def test_trigger_tool_change(context: Context) -> str:
    """Say that the list of tools has changed."""
    await context.notify_tools_changed()
    return "Said."


async def test_trigger_prompt_change(context: Context) -> str:
    """Say that the list of prompts has changed."""
    await context.notify_prompts_changed()
    return "Said."


def test_header(
    region: Annotated[str, Field(json_schema_extra={"x-mcp-header": "Region"})],
) -> str:
    """Take an argument that is repeated in a header."""
    return region


def json_schema_2020_12_tool(name: str = "") -> str:
    """Have a schema with all that JSON Schema offers."""
    return name


def _embedded(uri: str, mime_type: str, text: str) -> EmbeddedResource:
    return EmbeddedResource(resource=TextResourceContents(uri=uri, mime_type=mime_type, text=text))


async def _elicit(
    context: Context, message: str, properties: dict[str, Any], required: list[str] | None = None
) -> ElicitResult:
    schema = {"type": "object", "properties": properties, "required": required or []}
    params = ElicitRequestFormParams(message=message, requested_schema=schema)
    return await context.session.send_request(
        ElicitRequest(params=params), ElicitResult, metadata=_related(context)
    )


def _related(context: Context) -> ServerMessageMetadata:
    return ServerMessageMetadata(related_request_id=context.request_id)
