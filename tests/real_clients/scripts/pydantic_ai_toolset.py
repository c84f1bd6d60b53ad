"""pydantic-ai: an agent, whose model is played by a function, calls the tool."""

import asyncio
import json
import os

from fastmcp.client.transports import StdioTransport
from pydantic_ai import Agent
from pydantic_ai.mcp import MCPToolset
from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import FunctionModel

OFFERED: list[str] = []


def play(messages, info):
    """Call `vers_rlm` once, and then say what it returned."""
    OFFERED[:] = [tool.name for tool in info.function_tools]
    parts = messages[-1].parts
    results = [part for part in parts if isinstance(part, ToolReturnPart)]
    if results:
        return ModelResponse(parts=[TextPart(str(results[-1].content))])
    return ModelResponse(parts=[ToolCallPart("vers_rlm", {"signature": "-> answer: int"})])


async def main() -> None:
    server = MCPToolset(StdioTransport(os.environ["SERVER"], [], dict(os.environ)), init_timeout=60)
    agent = Agent(FunctionModel(play), toolsets=[server])
    async with agent:
        result = await agent.run("What is 6 * 7?")
    print(json.dumps({"tools": OFFERED, "answer": result.output}))


asyncio.run(main())
