"""What a declared tool is and does, seen by a real client."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypedDict

import pytest
from mcp import Client
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.tools import Tool
from mcp_types import CallToolResult, TextContent
from pydantic import Field

from vers_rlm_mcp.errors import MachineGone
from vers_rlm_mcp.server import Application
from vers_rlm_mcp.server.arguments import Options
from vers_rlm_mcp.server.schemas import IN_WORDS
from vers_rlm_mcp.server.toolset import READS, Answer, Toolset


class Size(Options):
    width: int = Field(1, ge=1)
    height: int = 1


class DrawnFields(TypedDict):
    area: int
    note: str | None


TOOLS = Toolset()


@TOOLS.tool("draw", "Draw", READS, {"size": {"width": 3}})
async def draw(
    size: Size,
    colour: Annotated[str | None, Field(description="Its colour")] = None,
    lineWidth: int = 1,  # noqa: N803 - as clients send it
    copies: Annotated[int, Field(le=9, description="Default 1, max 9"), IN_WORDS] = 1,
    corners: Annotated[int, Field(le=9, description="Default 4, max 9")] = 4,
) -> Answer[DrawnFields]:
    """Draw a box.

    In one colour.
    """
    if colour == "gone":
        raise MachineGone("The machine is gone; make another with vmCreate.")
    if colour == "broken":
        raise RuntimeError("a secret of the server")
    area = size.width * size.height * lineWidth * copies * corners // 4
    return Answer({"area": area, "note": None}, f"An area of {area}")


@pytest.fixture
def server(application: Application) -> MCPServer[Any]:
    @asynccontextmanager
    async def lifespan(_: object) -> AsyncGenerator[Application]:
        yield application

    return MCPServer("test", tools=list[Tool](TOOLS.tools), lifespan=lifespan)


async def call(server: MCPServer[Any], **arguments: object) -> CallToolResult:
    async with Client(server) as client:
        return await client.call_tool("draw", arguments)


async def error(server: MCPServer[Any], **arguments: object) -> str:
    result = await call(server, **arguments)
    assert result.is_error
    return text_of(result)


def text_of(result: CallToolResult) -> str:
    (content,) = result.content
    assert isinstance(content, TextContent)
    return content.text


async def test_an_answer_is_complete_as_text_and_as_structured_content(server: MCPServer[Any]):
    result = await call(server, size={"width": 3, "height": 2})
    assert (text_of(result), result.structured_content) == ("An area of 6", {"area": 6})


async def test_an_invented_argument_is_refused_with_the_closest_and_all_the_right_ones(
    server: MCPServer[Any],
):
    assert await error(server, size={}, lineWith=2) == (
        "draw: there is no argument 'lineWith' (did you mean 'lineWidth'?). "
        'It takes: size, colour, lineWidth, copies, corners. Example: {"size": {"width": 3}}'
    )


async def test_an_invented_field_of_an_argument_is_refused_likewise(server: MCPServer[Any]):
    assert await error(server, size={"widht": 2}) == (
        "draw: 'size': there is no argument 'widht' (did you mean 'width'?). "
        'It takes: width, height. Example: {"size": {"width": 3}}'
    )


async def test_missing_and_wrong_arguments_are_named_together(server: MCPServer[Any]):
    assert await error(server, lineWidth="wide") == (
        "draw: 'size' is missing; 'lineWidth': Input should be a valid integer, "
        'unable to parse string as an integer. Example: {"size": {"width": 3}}'
    )
    assert "size.width" in await error(server, size={"width": 0})


async def test_what_an_argument_means_beyond_doubt_is_taken(server: MCPServer[Any]):
    cases: list[tuple[dict[str, Any], int]] = [
        ({"size": '{"width": 5}'}, 5),
        ({"size": {"Width": "5", "height": None}}, 5),
        ({"size": {}, "line_width": 2}, 2),
        ({"SIZE": {}, "line-width": "2", "lineWidth": "2"}, 2),
        ({"size": {}, "lineWidth": 2.0, "copies": "3", "corners": None}, 6),
        ({"size": {}, "colour": None}, 1),
    ]
    for arguments, area in cases:
        assert text_of(await call(server, **arguments)) == f"An area of {area}"


async def test_what_is_in_doubt_is_refused_with_what_is_missing_and_an_example(
    server: MCPServer[Any],
):
    example = ' Example: {"size": {"width": 3}}'
    cases: list[tuple[dict[str, Any], str]] = [
        ({"siz": {}}, "no argument 'siz' (did you mean 'size'?); 'size' is missing."),
        ({"size": {}, "lineWidth": 1, "line_width": 2}, "'lineWidth' is given twice"),
        ({"size": {}, "lineWidth": 10**30}, "'lineWidth' is out of range"),
        ({"size": {}, "lineWidth": "9" * 30}, "'lineWidth' is out of range"),
        ({"size": {"width": 10**30}}, "'width' is out of range"),
        ({"size": None}, "'size'"),
        ({"size": "[5]"}, "'size'"),
        ({"size": {}, "lineWidth": 1.5}, "'lineWidth'"),
        ({}, "'size' is missing"),
    ]
    for arguments, fault in cases:
        text = await error(server, **arguments)
        assert fault in text
        assert text.endswith(example)


async def test_an_error_of_this_project_reaches_the_model_as_it_is(server: MCPServer[Any]):
    text = await error(server, size={}, colour="gone")
    assert text == "The machine is gone; make another with vmCreate."


async def test_a_fault_is_logged_and_the_model_is_told_without_its_secrets(
    server: MCPServer[Any], caplog: pytest.LogCaptureFixture
):
    text = await error(server, size={}, colour="broken")
    assert "fault of this server (RuntimeError)" in text
    assert "secret" not in text
    assert "a secret of the server" in caplog.text
    assert not (await call(server, size={})).is_error


async def test_schemas_are_short_flat_and_omit_what_is_marked_as_said_in_words(
    server: MCPServer[Any],
):
    async with Client(server) as client:
        (tool,) = (await client.list_tools()).tools
    assert tool.description == "Draw a box. In one colour."
    assert tool.input_schema == {
        "type": "object",
        "properties": {
            "size": {
                "type": "object",
                "properties": {
                    "width": {"type": "integer", "default": 1},
                    "height": {"type": "integer", "default": 1},
                },
            },
            "colour": {"type": "string", "description": "Its colour"},
            "lineWidth": {"type": "integer", "default": 1},
            "copies": {"type": "integer", "description": "Default 1, max 9"},
            "corners": {
                "type": "integer",
                "default": 4,
                "maximum": 9,
                "description": "Default 4, max 9",
            },
        },
        "required": ["size"],
    }
    assert tool.output_schema == {
        "type": "object",
        "properties": {"area": {"type": "integer"}, "note": {"type": "string"}},
    }
