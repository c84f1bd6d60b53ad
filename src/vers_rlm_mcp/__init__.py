"""vers-rlm-mcp: an MCP server that gives an AI agent a whole machine to think with."""

__version__ = "0.1.0"
