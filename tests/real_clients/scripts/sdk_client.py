"""The SDK's own client, in the era of the protocol that is named on the command line."""

import asyncio
import sys

from mcp import Client, StdioServerParameters
from trial import ENVIRONMENT, LIMIT_SECONDS, SERVER, next_call, report


async def main() -> None:
    server = StdioServerParameters(command=SERVER, env=ENVIRONMENT)
    async with Client(server, mode=sys.argv[1], read_timeout_seconds=LIMIT_SECONDS) as client:
        tools = [tool.name for tool in (await client.list_tools()).tools]
        answers = []
        while call := next_call(answers):
            result = await client.call_tool(*call)
            answers.append(str(result.structured_content))
        report(tools, answers)


asyncio.run(main())
