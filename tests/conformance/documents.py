"""The resources and prompts that the suite reads. Names and texts are those of the suite."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mcp.server.mcpserver import Image, UserMessage
from mcp.server.mcpserver.resources import FunctionResource
from mcp_types import (
    EmbeddedResource,
    EmptyResult,
    SetLevelRequestParams,
    SubscribeRequestParams,
    TextResourceContents,
    UnsubscribeRequestParams,
)

from .tools import PNG

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer


def mount(server: MCPServer[Any]) -> None:
    """Add them to a server, and the methods about them that only earlier revisions have."""
    resources = (
        (static_text, "static-text", "text/plain"),
        (static_binary, "static-binary", "image/png"),
        (watched_resource, "watched-resource", "text/plain"),
    )
    for read, name, mime_type in resources:
        server.add_resource(
            FunctionResource.from_function(
                read, uri=f"test://{name}", name=name, description=name, mime_type=mime_type
            )
        )
    server.resource("test://template/{id}/data", mime_type="application/json")(template)
    for prompt in (
        test_simple_prompt,
        test_prompt_with_arguments,
        test_prompt_with_embedded_resource,
        test_prompt_with_image,
    ):
        server.prompt()(prompt)
    low = server._lowlevel_server  # pyright: ignore[reportPrivateUsage]
    low.add_request_handler("logging/setLevel", SetLevelRequestParams, _accept)
    low.add_request_handler("resources/subscribe", SubscribeRequestParams, _accept)
    low.add_request_handler("resources/unsubscribe", UnsubscribeRequestParams, _accept)


def static_text() -> str:
    return "This is the content of the static text resource."


def static_binary() -> bytes:
    return PNG


def watched_resource() -> str:
    return "This is watched."


def template(id: str) -> str:  # noqa: A002 - the name in the suite's template
    return json.dumps({"id": id, "templateTest": True, "data": f"Data for ID: {id}"})


def test_simple_prompt() -> str:
    """Say one thing."""
    return "This is a simple prompt for testing."


def test_prompt_with_arguments(arg1: str, arg2: str) -> str:
    """Say what was given."""
    return f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"


def test_prompt_with_embedded_resource(resourceUri: str) -> list[UserMessage]:  # noqa: N803 - the suite's
    """Show a resource."""
    resource = TextResourceContents(
        uri=resourceUri, mime_type="text/plain", text="Embedded resource content for testing."
    )
    return [
        UserMessage(EmbeddedResource(resource=resource)),
        UserMessage("Please process the embedded resource above."),
    ]


def test_prompt_with_image() -> list[UserMessage]:
    """Show an image."""
    return [
        UserMessage(Image(data=PNG, format="png")),
        UserMessage("Please analyze the image above."),
    ]


async def _accept(_: object, __: object) -> EmptyResult:
    return EmptyResult()
