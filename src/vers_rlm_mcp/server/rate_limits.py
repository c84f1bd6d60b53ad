"""Limits on what one client may ask for, so that there is something left for the others."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mcp_types import CallToolResult, TextContent
from starlette.responses import PlainTextResponse

from .principals import bearer_token, caller

if TYPE_CHECKING:
    from collections.abc import Callable

    from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
    from starlette.types import ASGIApp, Receive, Scope, Send

BURST_SECONDS: Final = 4.0
"""Unused seconds of its rate that a client may save up: clients connect with a burst."""

MAX_CLIENTS: Final = 4096
"""Clients remembered; one that was forgotten starts with a full allowance."""


class CallLimit:
    """Middleware that refuses a tool call while its principal has too many under way.

    Args:
        limit: How many calls a principal may have under way.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._under_way: Counter[str | None] = Counter()

    async def __call__(
        self, ctx: ServerRequestContext[Any, Any], call_next: CallNext
    ) -> HandlerResult:
        """Pass a request on unless it is one call too many."""
        if ctx.method != "tools/call":
            return await call_next(ctx)
        principal = caller()
        if self._under_way[principal] >= self._limit:
            text = f"{self._limit} calls of yours are under way; wait until one of them has ended."
            return CallToolResult(content=[TextContent(text=text)], is_error=True)
        self._under_way[principal] += 1
        try:
            return await call_next(ctx)
        finally:
            self._under_way[principal] -= 1


class RateLimit:
    """ASGI middleware that answers 429 to a client that asks for too much.

    Args:
        asgi: Receives the requests that pass.
        per_second: Requests per second, in the long run.
        at_once: Requests and streams open at once.
        principal: Finds the principal of a bearer token. Requests without a valid one count for
            their address.
    """

    def __init__(
        self,
        asgi: ASGIApp,
        per_second: float,
        at_once: int,
        principal: Callable[[str], str | None],
    ) -> None:
        self._asgi = asgi
        self._per_second = per_second
        self._at_once = at_once
        self._principal = principal
        self._allowances: OrderedDict[str, _Allowance] = OrderedDict()
        self._open: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 429."""
        if scope["type"] != "http":
            await self._asgi(scope, receive, send)
            return
        client = self._client(scope)
        if not self._allows(client):
            await _refuse("Too many requests: wait a moment.")(scope, receive, send)
        elif self._open[client] >= self._at_once:
            text = f"{self._at_once} requests of yours are open: wait until one has been answered."
            await _refuse(text)(scope, receive, send)
        else:
            self._open[client] += 1
            try:
                await self._asgi(scope, receive, send)
            finally:
                self._open[client] -= 1
                if not self._open[client]:
                    del self._open[client]

    def _client(self, scope: Scope) -> str:
        address: tuple[str, int] | None = scope.get("client")
        return self._principal(bearer_token(scope)) or (address[0] if address else "")

    def _allows(self, client: str) -> bool:
        now = time.monotonic()
        most = max(1.0, self._per_second * BURST_SECONDS)
        allowance = self._allowances.pop(client, None) or _Allowance(most, now)
        self._allowances[client] = allowance
        if len(self._allowances) > MAX_CLIENTS:
            self._allowances.popitem(last=False)
        earned = (now - allowance.since) * self._per_second
        allowance.left, allowance.since = min(most, allowance.left + earned), now
        if allowance.left < 1:
            return False
        allowance.left -= 1
        return True


def _refuse(text: str) -> PlainTextResponse:
    return PlainTextResponse(text, status_code=429, headers={"Retry-After": "1"})


@dataclass(slots=True)
class _Allowance:
    """How many requests a client may make at once."""

    left: float
    since: float
    """When `left` was true, by the monotonic clock."""
