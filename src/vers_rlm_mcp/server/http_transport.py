"""MCP over HTTP: Streamable HTTP at `/mcp`, or the older HTTP with SSE at `/sse`."""

from __future__ import annotations

import ipaddress
import logging
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import anyio
import uvicorn
from mcp.server.transport_security import (
    RequestBodyLimitMiddleware,
    TransportSecuritySettings,
)
from starlette.responses import JSONResponse

from vers_rlm_mcp.errors import SettingsError

from .application import Application
from .http_guard import Guard, Paths
from .http_messages import Messages, Sessions
from .mcp_server import create_server
from .principals import RequireToken, open_principals
from .rate_limits import RateLimit
from .signals import call_on_signal
from .wire import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from anyio.abc import TaskStatus
    from mcp.server.mcpserver import MCPServer
    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

    from vers_rlm_mcp.settings import Settings

    from .principals import Principals

logger = logging.getLogger(__name__)

Transport = Literal["http", "sse"]

PATHS: dict[Transport, tuple[str, ...]] = {"http": ("/mcp",), "sse": ("/sse", "/messages/")}
"""What is served besides `/healthz`; the first is the address for clients."""

BACKLOG = 128
"""Connections waiting to be accepted: the kernel's usual limit."""

MAX_CONNECTIONS = 512
"""Connections open at once; further ones are answered 503. Each call and each stream is one, and
each principal may have its share of them."""

MAX_SESSIONS = 1024
"""Sessions open at once, of which each principal may have its share. One that is idle for half an
hour ends."""

MIN_SHARE = 16
"""A principal's share, however many principals there are: one client needs several of each."""

KEEP_ALIVE_SECONDS = 620
"""How long a connection may be idle: longer than in the pools of proxies (up to 600 s), which else
send a request just when it is closed."""

CLEAN_UP_SECONDS = 20
"""How long cancelled requests may take to clean up, deleting machines included."""


async def serve_http(
    settings: Settings,
    *,
    transport: Transport = "http",
    host: str = "127.0.0.1",
    port: int = 0,
    make_server: Callable[..., MCPServer[Any]] = create_server,
    task_status: TaskStatus[str] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve clients over HTTP until a signal tells the process to stop.

    Args:
        settings: The server's settings. If they name tokens, every request must present one.
        transport: Streamable HTTP, or HTTP with SSE.
        host: The address to listen on. Any but loopback needs a token.
        port: 0 takes a free one, which the log names.
        make_server: Makes the server of an application, as `create_server` does.
        task_status: Receives the address of the endpoint once it accepts connections.

    Raises:
        SettingsError: The address is open to others without a token, or is not available.
    """
    principals = open_principals(settings)
    if not principals and not _is_loopback(host):
        raise SettingsError(
            f"{host} can be reached from other computers, and anyone who reaches this server can "
            "run code: set a token (VERS_RLM_TOKEN or --token-file), or listen on 127.0.0.1."
        )
    with _listening(host, port) as listener:
        base = f"http://{_in_url(host)}:{listener.getsockname()[1]}"
        app = Application(settings, one_client=False, with_principals=principals is not None)
        asgi = Guard(
            RateLimit(
                Paths(
                    _asgi(make_server(app), transport, principals),
                    [*PATHS[transport], "/healthz"],
                ),
                settings.max_requests,
                _share(MAX_CONNECTIONS, principals),
                principals.find if principals else _no_principal,
            ),
            host,
            settings.allowed_hosts,
            settings.allowed_origins,
        )
        async with app:
            logger.info("Serving MCP at %s%s", base, PATHS[transport][0])
            task_status.started(base + PATHS[transport][0])
            await _serve(asgi, listener)


class _Requests:
    """ASGI middleware that can cancel all requests at once.

    Without it uvicorn waits for streams that stay open, and then does not wait for their clean-up.
    """

    def __init__(self, asgi: ASGIApp) -> None:
        self._asgi = asgi
        self._scopes: set[anyio.CancelScope] = set()
        self._ended = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._asgi(scope, receive, send)
            return
        with anyio.CancelScope() as request:
            self._scopes.add(request)
            try:
                if not self._ended:
                    await self._asgi(scope, receive, send)
            finally:
                self._scopes.discard(request)

    def end(self) -> None:
        self._ended = True
        for request in self._scopes:
            request.cancel()


class _Server(uvicorn.Server):
    """Leaves signals to `call_on_signal`: uvicorn would raise them before machines are deleted."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


def _asgi(server: MCPServer[Any], transport: Transport, principals: Principals | None) -> ASGIApp:
    """The application at the endpoints, for requests that the guard let in."""
    server.custom_route("/healthz", methods=["GET"])(_healthz)
    guarded_already = TransportSecuritySettings(enable_dns_rebinding_protection=False)
    if transport == "sse":
        app = server.sse_app(
            sse_path=PATHS["sse"][0],
            message_path=PATHS["sse"][1],
            transport_security=guarded_already,
            max_request_body_size=MAX_MESSAGE_BYTES,
        )
        checked = Messages(app, renames=False)
    else:
        app = server.streamable_http_app(
            streamable_http_path=PATHS["http"][0],
            transport_security=guarded_already,
            max_request_body_size=MAX_MESSAGE_BYTES,
            # Sessions has the limit: those that are being opened come on top of it.
            max_sessions=MAX_SESSIONS + MAX_CONNECTIONS,
        )
        checked = Messages(Sessions(app, _share(MAX_SESSIONS, principals)))
    bounded = RequestBodyLimitMiddleware(checked, MAX_MESSAGE_BYTES)
    return RequireToken(bounded, principals, app) if principals else bounded


def _share(most: int, principals: Principals | None) -> int:
    return max(MIN_SHARE, most // len(principals)) if principals else most


async def _serve(asgi: ASGIApp, listener: socket.socket) -> None:
    requests = _Requests(asgi)
    server = _Server(
        uvicorn.Config(
            requests,
            log_config=None,
            log_level="warning",
            access_log=False,
            http="h11",  # refuses what could be read in two ways
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=CLEAN_UP_SECONDS,
        )
    )

    def stop() -> None:
        server.should_exit = True
        requests.end()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call_on_signal, stop)
        await server.serve(sockets=[listener])
        tasks.cancel_scope.cancel()


def _no_principal(_: str) -> None:
    """The principal of a token if the server has none."""


async def _healthz(_: Request) -> JSONResponse:
    return JSONResponse({"status": "ok"})


@contextmanager
def _listening(host: str, port: int) -> Generator[socket.socket]:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise SettingsError(
            f"Cannot listen on {host}:{port}: {error.strerror}. Choose another --host or --port."
        ) from error
    with listener:
        listener.setblocking(False)
        yield listener


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
