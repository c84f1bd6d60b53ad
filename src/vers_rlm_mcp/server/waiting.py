"""How long a call may wait for a run, and whether who cancelled it has only stopped waiting."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

import anyio

if TYPE_CHECKING:
    from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
    from mcp.server.mcpserver import Context

WAIT_SECONDS: Final = 50.0
"""Several clients give up after a minute, whatever progress they are told."""

PATIENT: Final = {
    "claude-code": 280.0,
    "codex-mcp-client": 140.0,
    "gemini-cli-mcp-client": 140.0,
    "opencode": 140.0,
}
"""Clients that were seen to wait for longer while they are told of progress, by their names."""

TIMED_OUT: Final = "timed out"
"""What the SDKs' clients say when they cancel a call since it took too long."""

REASON_SECONDS: Final = 0.25
"""How long the reason of a cancellation is waited for, which comes after it, or not at all."""

POLL_SECONDS: Final = 0.01
MAX_REASONS: Final = 256
"""Reasons remembered: each is asked for at once, if ever."""


def patience(context: Context[Any, Any], setting: float | None) -> float:
    """Seconds for which a call of this client should wait for a run at most."""
    if setting is not None:
        return setting
    client = context.session.client_params
    return PATIENT.get(client.client_info.name, WAIT_SECONDS) if client else WAIT_SECONDS


class Cancellations:
    """Remembers why clients cancelled their calls; goes around every message."""

    def __init__(self) -> None:
        self._reasons: OrderedDict[tuple[str, str], str] = OrderedDict()

    async def __call__(
        self, ctx: ServerRequestContext[Any, Any], call_next: CallNext
    ) -> HandlerResult:
        """Pass a message on, and note why it cancels a call, if that is what it does."""
        if ctx.method == "notifications/cancelled" and ctx.params:
            key = _connection(ctx), str(ctx.params.get("requestId"))
            self._reasons[key] = str(ctx.params.get("reason"))
            if len(self._reasons) > MAX_REASONS:
                self._reasons.popitem(last=False)
        return await call_next(ctx)

    async def gave_up(self, context: Context[Any, Any]) -> bool:
        """Whether the client of a call that was just cancelled has only stopped waiting for it."""
        key = _connection(context.request_context), context.request_id
        with anyio.CancelScope(shield=True), anyio.move_on_after(REASON_SECONDS):
            while key not in self._reasons:  # noqa: ASYNC110 - none may ever come
                await anyio.sleep(POLL_SECONDS)
        return TIMED_OUT in self._reasons.pop(key, "")


def _connection(ctx: ServerRequestContext[Any, Any]) -> str:
    """What tells the connection of a message from others: request ids are unique within one."""
    request = ctx.request
    if request is None:
        return ""
    return request.headers.get("mcp-session-id") or request.query_params.get("session_id", "")
