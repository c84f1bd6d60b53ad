"""The MCP server: stdio, Streamable HTTP and SSE around one application.

Only this room knows MCP. It promises that a failed call tells the model what to do, that cancelling
a call ends its work, and that no machine outlives the server unless it was to be kept.

The rooms below are imported inside functions, by the first call that needs them: loading them takes
a tenth of a second, for which no client's handshake should wait.
"""

from __future__ import annotations

from .application import Application
from .http_transport import serve_http
from .mcp_server import create_server
from .stdio_transport import serve_stdio
from .telemetry import exporting

__all__ = ["Application", "create_server", "exporting", "serve_http", "serve_stdio"]
