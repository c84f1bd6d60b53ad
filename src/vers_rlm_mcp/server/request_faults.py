"""What is wrong with a request, where the SDK says only that its parameters are invalid."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS
from pydantic import ValidationError

from .arguments import unpack_arguments

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
    from pydantic_core import ErrorDetails

MAX_FAULTS: Final = 5
"""Faults that one error names: enough to fix a call, short enough to read."""

UNEXPLAINED: Final = "Invalid request parameters"
"""The SDK's text for a request that came before `initialize`."""


async def explain_faults(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
    """Middleware: pass a message on, and explain the error if its parameters are invalid."""
    try:
        return await call_next(ctx)
    except ValidationError as error:
        faults = describe_faults(error.errors(include_url=False))
        raise MCPError(INVALID_PARAMS, f"{ctx.method}: {faults}") from error
    except MCPError as error:
        if error.error.message != UNEXPLAINED:
            raise
        raise MCPError(
            INVALID_PARAMS,
            f"{ctx.method} came before `initialize`: send `initialize`, and then the notification "
            "`notifications/initialized`.",
        ) from error


async def take_arguments(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
    """Middleware: pass a message on, with a tool's arguments as an object."""
    if ctx.method == "tools/call" and ctx.params:
        ctx = replace(ctx, params=unpack_arguments(ctx.params))
    return await call_next(ctx)


def describe_faults(faults: Sequence[ErrorDetails]) -> str:
    """Wrong parameters or arguments, each by its name."""
    lines = list(dict.fromkeys(_describe(fault) for fault in faults))
    if len(lines) > MAX_FAULTS:
        lines[MAX_FAULTS:] = [f"… and {len(lines) - MAX_FAULTS} more"]
    return "; ".join(lines)


def _describe(fault: ErrorDetails) -> str:
    path = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "missing":
        return f"{path!r} is missing"
    return f"{path!r}: {fault['msg'].removeprefix('Value error, ')}"
