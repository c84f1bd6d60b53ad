"""pydantic-ai: an agent, whose model is played by a function, calls the tools."""

import asyncio

from fastmcp.client.transports import StdioTransport
from pydantic_ai import Agent
from pydantic_ai.mcp import MCPToolset
from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import FunctionModel
from trial import ENVIRONMENT, LIMIT_SECONDS, SERVER, next_call, report

OFFERED: list[str] = []
ANSWERS: list[str] = []


def play(messages, info):
    """Call tools for as long as there is something to call."""
    OFFERED[:] = [tool.name for tool in info.function_tools]
    parts = [part for message in messages for part in message.parts]
    ANSWERS[:] = [str(part.content) for part in parts if isinstance(part, ToolReturnPart)]
    call = next_call(ANSWERS)
    return ModelResponse(parts=[ToolCallPart(*call) if call else TextPart("Done.")])


async def main() -> None:
    server = MCPToolset(StdioTransport(SERVER, [], ENVIRONMENT), read_timeout=LIMIT_SECONDS)
    async with Agent(FunctionModel(play), toolsets=[server]) as agent:
        await agent.run("What is 6 * 7?")
    report(OFFERED, ANSWERS)


asyncio.run(main())
