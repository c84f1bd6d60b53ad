"""What every request passes before it reaches the service: its end, and its faults."""

from __future__ import annotations

import math
import time
import zlib
from email.utils import formatdate
from typing import TYPE_CHECKING, Final

import anyio
from starlette.responses import Response

from .faults import Answer, Delay, Endless, Garbage, Hang, Refuse, ReplyFault, Reset, Truncate
from .http import break_connection

if TYPE_CHECKING:
    import asyncio

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from .faults import Faults
    from .vms import Cloud

PREFIX: Final = "/api/v1"

WINDOW_BITS: Final = {"gzip": 31, "deflate": 15}
"""For zlib: which header it writes."""


class Requests:
    """Requests that can all be ended at once, else the hanging ones would outlive the service."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._scopes: set[anyio.CancelScope] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with anyio.CancelScope() as request:
            self._scopes.add(request)
            try:
                await self._app(scope, receive, send)
            finally:
                self._scopes.discard(request)
        if request.cancelled_caught:
            await break_connection(scope, receive)

    def end(self) -> None:
        """Cancel what is being answered, and close the connections."""
        for request in self._scopes:
            request.cancel()


class Dated:
    """Gives every answer the date of the service's own clock, unless it has another already."""

    def __init__(self, app: ASGIApp, cloud: Cloud) -> None:
        self._app = app
        self._cloud = cloud

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_dated(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message.setdefault("headers", [])
                if self._cloud.tells_date and all(name != b"date" for name, _ in headers):
                    date = formatdate(time.time() + self._cloud.clock, usegmt=True)
                    message["headers"] = [*headers, (b"date", date.encode())]
            await send(message)

        await self._app(scope, receive, send_dated)


class Faulty:
    """Lets requests to the service go wrong as the faults that are set say."""

    def __init__(self, app: ASGIApp, faults: Faults) -> None:
        self._app = app
        self._faults = faults

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        if not path.startswith(PREFIX):
            await self._app(scope, receive, send)
            return
        at = f"{scope['method']} {path.removeprefix(PREFIX)}"
        vms = path.split("/")
        if delay := self._faults.take(Delay, at, *vms):
            await anyio.sleep(delay.seconds)
        fault = self._faults.take(ReplyFault, at, *vms)
        if fault is None:
            await self._app(scope, receive, send)
        else:
            await self._go_wrong(fault, scope, receive, send)

    async def _go_wrong(
        self, fault: ReplyFault, scope: Scope, receive: Receive, send: Send
    ) -> None:
        match fault:
            case Refuse():
                headers = {"Retry-After": fault.retry_after} if fault.retry_after else {}
                response = Response(fault.body, fault.status, headers, fault.content_type)
                await response(scope, receive, send)
            case Hang():
                await anyio.sleep(math.inf if fault.seconds is None else fault.seconds)
                await break_connection(scope, receive)
            case Reset():
                await break_connection(scope, receive, reset=True)
            case Endless():
                await _send_without_end(fault, scope, send)
            case Answer(does=False):
                response = Response(fault.body, fault.status or 200, fault.headers)
                await response(scope, receive, send)
            case _:
                await self._spoil(fault, scope, receive, send)

    async def _spoil(self, fault: ReplyFault, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the service answer, and do something to the answer."""
        messages: list[Message] = []

        async def keep(message: Message) -> None:
            messages.append(message)

        await self._app(scope, receive, keep)
        status = messages[0]["status"]
        body = b"".join(message.get("body", b"") for message in messages[1:])
        match fault:
            case Garbage():
                await Response(fault.body, status, media_type="text/html")(scope, receive, send)
            case Answer():
                told = body if fault.body is None else fault.body
                media = None if fault.body is not None else "application/json"
                response = Response(told, fault.status or status, fault.headers, media)
                await response(scope, receive, send)
            case Truncate():
                await send(messages[0])
                await send(
                    {
                        "type": "http.response.body",
                        "body": body[: len(body) // 2],
                        "more_body": True,
                    }
                )
                await break_connection(scope, receive)
            case _:
                await break_connection(scope, receive)


async def _send_without_end(fault: Endless, scope: Scope, send: Send) -> None:
    transport: asyncio.Transport = scope["state"]["transport"]
    headers = [(b"content-type", b"application/json")]
    piece = fault.piece.encode()
    if fault.codec:
        headers.append((b"content-encoding", fault.codec.encode()))
    packer = zlib.compressobj(wbits=WINDOW_BITS[fault.codec]) if fault.codec else None
    await send({"type": "http.response.start", "status": fault.status, "headers": headers})
    sent = 0
    while sent != fault.pieces and not transport.is_closing():
        data = packer.compress(piece) if packer else piece
        await send({"type": "http.response.body", "body": data, "more_body": True})
        await anyio.sleep(fault.pause)
        sent += 1
    last = packer.flush() if packer else b""
    await send({"type": "http.response.body", "body": last})
