"""The command line: `vers-rlm-mcp`. With no command it is an MCP server on stdin and stdout."""

from .entry import main

__all__ = ["main"]
