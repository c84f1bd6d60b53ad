"""LangChain's adapters, which make a tool of LangChain of each tool here."""

import asyncio
import json
import os

from langchain_mcp_adapters.client import MultiServerMCPClient

SERVER = {
    "transport": "stdio",
    "command": os.environ["SERVER"],
    "args": [],
    "env": dict(os.environ),
}


async def main() -> None:
    tools = await MultiServerMCPClient({"vers-rlm": SERVER}).get_tools()
    (run,) = [tool for tool in tools if tool.name == "vers_rlm"]
    answer = await run.ainvoke({"signature": "-> answer: int"})
    print(json.dumps({"tools": [tool.name for tool in tools], "answer": str(answer)}))


asyncio.run(main())
