"""fastmcp's client."""

import asyncio

from fastmcp import Client
from fastmcp.client.transports import StdioTransport
from trial import ENVIRONMENT, LIMIT_SECONDS, SERVER, next_call, report


async def main() -> None:
    transport = StdioTransport(SERVER, [], ENVIRONMENT)
    async with Client(transport, timeout=LIMIT_SECONDS) as client:
        tools = [tool.name for tool in await client.list_tools()]
        answers = []
        while call := next_call(answers):
            result = await client.call_tool(*call)
            answers.append(str(result.structured_content))
        report(tools, answers)


asyncio.run(main())
