"""LangChain's adapters, which make a tool of LangChain of each tool here.

The session is kept open: without one, each call starts a server of its own, and a run ends with it.
"""

import asyncio
from datetime import timedelta

from langchain_mcp_adapters.client import MultiServerMCPClient
from langchain_mcp_adapters.tools import load_mcp_tools
from trial import ENVIRONMENT, LIMIT_SECONDS, SERVER, next_call, report

CONNECTION = {
    "transport": "stdio",
    "command": SERVER,
    "args": [],
    "env": ENVIRONMENT,
    "session_kwargs": {"read_timeout_seconds": timedelta(seconds=LIMIT_SECONDS)},
}


async def main() -> None:
    async with MultiServerMCPClient({"vers-rlm": CONNECTION}).session("vers-rlm") as session:
        tools = {tool.name: tool for tool in await load_mcp_tools(session)}
        answers = []
        while call := next_call(answers):
            name, arguments = call
            answers.append(str(await tools[name].ainvoke(arguments)))
        report(list(tools), answers)


asyncio.run(main())
