"""The command line, `vers-rlm-mcp`. Without a command, it serves MCP on stdin and stdout."""

from .entry import main

__all__ = ["main"]
