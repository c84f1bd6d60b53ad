"""fastmcp's client."""

import asyncio
import json
import os

from fastmcp import Client
from fastmcp.client.transports import StdioTransport


async def main() -> None:
    async with Client(StdioTransport(os.environ["SERVER"], [], dict(os.environ))) as client:
        tools = [tool.name for tool in await client.list_tools()]
        run = await client.call_tool("vers_rlm", {"signature": "-> answer: int"})
        print(json.dumps({"tools": tools, "answer": str(run.structured_content["outputs"])}))


asyncio.run(main())
