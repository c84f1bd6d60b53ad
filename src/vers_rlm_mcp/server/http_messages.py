"""Messages and sessions over HTTP, as far as the SDK's transport leaves them open.

The transport finds the request that an answer belongs to by its id alone. A client that numbers
every request alike would be given another request's answer
(modelcontextprotocol/python-sdk#3060), so each request gets an id of its own here, which its answer
loses again.
"""

from __future__ import annotations

import json
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from mcp.server.streamable_http import LAST_EVENT_ID_HEADER, MCP_SESSION_ID_HEADER
from mcp.shared.inbound import MCP_PROTOCOL_VERSION_HEADER
from mcp_types import PARSE_ERROR, JSONRPCNotification, JSONRPCRequest
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from starlette.datastructures import Headers
from starlette.responses import Response

from .principals import caller
from .wire import Refusal, read_message, write_message

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mcp_types import JSONRPCMessage
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

BAD_REQUEST: Final = 400
NOT_FOUND: Final = 404

MAX_REMEMBERED: Final = 8192
"""Requests without an answer whose own ids are remembered, in case that they are cancelled."""


class Messages:
    """ASGI middleware that answers messages which cannot be served, and passes on the others.

    Args:
        asgi: Receives the requests. Their bodies are whole, and of bounded size.
        renames: Whether each answer comes in the response to its request, so that the request can
            be given an id of its own.
    """

    def __init__(self, asgi: ASGIApp, *, renames: bool = True) -> None:
        self._asgi = asgi
        self._renames = renames
        self._requests: OrderedDict[tuple[str | None, str], list[str]] = OrderedDict()
        """The ids here of requests that have not been answered, by session and by their own id."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._asgi(_without_resumption(scope), receive, send)
            return
        body = await receive()
        if body["type"] != "http.request":
            return
        message = read_message(body["body"])
        if isinstance(message, tuple):
            empty = not body["body"].strip()
            refusals = (Refusal(PARSE_ERROR, "The body is empty."),) if empty else message
            await _refuse(refusals)(scope, receive, send)
            return
        if self._renames and _has_session(scope):
            send = self._rename(scope, message, send)
        await self._asgi(scope, _first({**body, "body": write_message(message)}, receive), send)

    def _rename(self, scope: Scope, message: JSONRPCMessage, send: Send) -> Send:
        """Give a request an id of its own; the `send` returned gives its answer the client's."""
        session = Headers(scope=scope).get(MCP_SESSION_ID_HEADER)
        if isinstance(message, JSONRPCRequest):
            key, own = (session, json.dumps(message.id)), uuid4().hex
            self._requests.setdefault(key, []).append(own)
            self._requests.move_to_end(key)
            if len(self._requests) > MAX_REMEMBERED:
                self._requests.popitem(last=False)
            former, message.id = json.dumps(message.id), own
            return _replacing(own, former, send, lambda: self._forget(key, own))
        if isinstance(message, JSONRPCNotification) and message.params:
            number = message.params.get("requestId")
            if known := self._requests.get((session, json.dumps(number))):
                message.params["requestId"] = known[0]
        return send

    def _forget(self, key: tuple[str | None, str], own: str) -> None:
        known = self._requests.get(key, [])
        if own in known:
            known.remove(own)
        if not known:
            self._requests.pop(key, None)


@dataclass(eq=False, slots=True)
class _Session:
    under_way: int = 0
    """Requests and streams that are open."""
    used_at: float = field(default_factory=time.monotonic)


class Sessions:
    """ASGI middleware that ends a principal's idlest session when it opens one too many.

    Args:
        asgi: Serves Streamable HTTP.
        limit: How many sessions a principal may have.
    """

    def __init__(self, asgi: ASGIApp, limit: int) -> None:
        self._asgi = asgi
        self._limit = limit
        self._sessions: dict[str | None, OrderedDict[str, _Session]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._asgi(scope, receive, send)
            return
        session_id = Headers(scope=scope).get(MCP_SESSION_ID_HEADER)
        sessions = self._sessions.setdefault(caller(), OrderedDict())
        session = sessions.get(session_id or "") or _Session()

        async def watch(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = Headers(raw=message["headers"]).get(MCP_SESSION_ID_HEADER)
                if message["status"] == NOT_FOUND or scope["method"] == "DELETE":
                    sessions.pop(session_id or "", None)
                elif given and message["status"] < BAD_REQUEST:
                    sessions[given] = session
                    await self._end_idlest(scope, sessions)
            await send(message)

        session.under_way += 1
        try:
            await self._asgi(scope, receive, watch)
        finally:
            session.under_way -= 1
            session.used_at = time.monotonic()

    async def _end_idlest(self, scope: Scope, sessions: OrderedDict[str, _Session]) -> None:
        while len(sessions) > self._limit:
            idlest = min(sessions, key=lambda it: (sessions[it].under_way, sessions[it].used_at))
            del sessions[idlest]
            logger.info("Ended a client's idlest session, since it has %d others", len(sessions))
            headers = [(MCP_SESSION_ID_HEADER.encode(), idlest.encode())]
            await self._asgi({**scope, "method": "DELETE", "headers": headers}, _nothing, _drop)


def _has_session(scope: Scope) -> bool:
    """Whether a request is one of many in a session; later revisions have none."""
    version = Headers(scope=scope).get(MCP_PROTOCOL_VERSION_HEADER)
    return version is None or version in HANDSHAKE_PROTOCOL_VERSIONS


def _without_resumption(scope: Scope) -> Scope:
    """A request for the session's stream, of which nothing is kept to be sent once more."""
    if scope["type"] != "http":
        return scope
    name = LAST_EVENT_ID_HEADER.encode()
    return {**scope, "headers": [each for each in scope["headers"] if each[0] != name]}


def _replacing(own: str, former: str, send: Send, answered: Callable[[], None]) -> Send:
    written, wanted = f'"id":"{own}"'.encode(), f'"id":{former}'.encode()

    async def replace(message: Message) -> None:
        if written in message.get("body", b""):
            message = {**message, "body": message["body"].replace(written, wanted, 1)}
            answered()
        await send(message)

    return replace


def _refuse(refusals: tuple[Refusal, ...]) -> Response:
    if not refusals:
        return Response(status_code=202)  # a notification
    answers: list[dict[str, Any]] = [json.loads(refusal.encode()) for refusal in refusals]
    body = json.dumps(answers[0] if len(answers) == 1 else answers)
    return Response(body, 400, media_type="application/json")


def _first(message: Message, receive: Receive) -> Callable[[], Awaitable[Message]]:
    waiting = [message]

    async def next_message() -> Message:
        return waiting.pop() if waiting else await receive()

    return next_message


async def _nothing() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _drop(_: Message) -> None:
    pass
