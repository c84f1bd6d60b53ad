"""The least that an MCP server can be with this SDK."""

from __future__ import annotations

from mcp.server.mcpserver import MCPServer

server = MCPServer("bare")


@server.tool()
def nothing() -> str:
    return ""


if __name__ == "__main__":
    server.run()
