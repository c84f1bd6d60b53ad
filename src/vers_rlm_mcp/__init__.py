"""vers-rlm-mcp: an MCP server that gives an AI agent a whole machine to think with.

Programs use `RLM` and `Machines`; what is not exported here is private.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .python_api import RLM, VM, CommandOutput, Machines, RunStream

__version__ = "0.1.0"

__all__ = ["RLM", "VM", "CommandOutput", "Machines", "RunStream", "__version__"]


def __getattr__(name: str) -> object:
    """Import the Python API when it is first used: the server starts without it."""
    if name in __all__:
        from . import python_api  # noqa: PLC0415 - see above

        return getattr(python_api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
