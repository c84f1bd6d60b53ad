"""HTTP with connections that can be broken on purpose."""

from __future__ import annotations

import socket
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import anyio
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Generator

    from anyio.abc import TaskStatus
    from starlette.types import ASGIApp, Receive, Scope

NO_LINGER: Final = struct.pack("ii", 1, 0)
"""For SO_LINGER: closing the connection resets it."""


class _Connection(H11Protocol):
    """Shows its transport to the application."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] - as uvicorn's own
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}


class _Server(uvicorn.Server):
    """Tells when it has started, and leaves signals to this process."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = anyio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


async def break_connection(scope: Scope, receive: Receive, *, reset: bool = False) -> None:
    """Close a request's connection after what was already written, or reset it at once."""
    transport: asyncio.Transport = scope["state"]["transport"]
    if reset:
        connection: socket.socket = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        transport.abort()
    else:
        transport.close()
    while (await receive())["type"] != "http.disconnect":
        pass


async def serve_http(
    app: ASGIApp, listener: socket.socket, *, task_status: TaskStatus[None]
) -> None:
    """Serve an application until cancelled. Requests that are being answered are not waited for."""
    config = uvicorn.Config(
        app,
        http=_Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        date_header=False,
    )
    server = _Server(config)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_serve, server, listener)
        try:
            await server.ready.wait()
            task_status.started()
            await anyio.sleep_forever()
        finally:
            server.should_exit = server.force_exit = True


async def _serve(server: uvicorn.Server, listener: socket.socket) -> None:
    """uvicorn closes its sockets only when it is told to end, not when it is cancelled."""
    with anyio.CancelScope(shield=True):
        await server.serve([listener])
