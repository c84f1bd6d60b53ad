"""Whether cancelling a call cancels its run."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

import anyio

if TYPE_CHECKING:
    from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
    from mcp.server.mcpserver import Context

TIMED_OUT: Final = "timed out"
"""The reason for which the SDKs' clients cancel a call that took too long."""

REASON_SECONDS: Final = 0.25
"""How long to wait for the reason of a cancellation, which comes after it, or not at all."""

POLL_SECONDS: Final = 0.01
MAX_REASONS: Final = 256
"""Reasons remembered: each is asked for at once, if ever."""


class Cancellations:
    """Middleware that remembers why clients cancelled their calls."""

    def __init__(self) -> None:
        self._reasons: OrderedDict[tuple[str, str], str] = OrderedDict()

    async def __call__(
        self, ctx: ServerRequestContext[Any, Any], call_next: CallNext
    ) -> HandlerResult:
        """Pass a message on, and note the reason if it cancels a call."""
        if ctx.method == "notifications/cancelled" and ctx.params:
            key = _connection(ctx), str(ctx.params.get("requestId"))
            self._reasons[key] = str(ctx.params.get("reason"))
            if len(self._reasons) > MAX_REASONS:
                self._reasons.popitem(last=False)
        return await call_next(ctx)

    async def is_timeout(self, context: Context[Any, Any]) -> bool:
        """Whether the client cancelled a call only because it took too long."""
        key = _connection(context.request_context), context.request_id
        with anyio.CancelScope(shield=True), anyio.move_on_after(REASON_SECONDS):
            while key not in self._reasons:  # noqa: ASYNC110 - none may ever come
                await anyio.sleep(POLL_SECONDS)
        return TIMED_OUT in self._reasons.pop(key, "")


def _connection(ctx: ServerRequestContext[Any, Any]) -> str:
    """The connection of a message: request ids are unique within one."""
    request = ctx.request
    if request is None:
        return ""
    return request.headers.get("mcp-session-id") or request.query_params.get("session_id", "")
