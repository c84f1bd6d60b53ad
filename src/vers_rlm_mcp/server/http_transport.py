"""MCP over HTTP: Streamable HTTP at `/mcp`, or the older HTTP with SSE at `/sse`."""

from __future__ import annotations

import ipaddress
import logging
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import anyio
import uvicorn
from mcp.server.auth.settings import AuthSettings
from mcp.server.transport_security import TransportSecuritySettings
from pydantic import AnyHttpUrl
from starlette.responses import JSONResponse

from vers_rlm_mcp.errors import SettingsError

from .application import Application
from .mcp_server import create_server
from .principals import open_principals
from .rate_limits import RateLimit
from .signals import call_on_signal

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from anyio.abc import TaskStatus
    from mcp.server.mcpserver import MCPServer
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

    from vers_rlm_mcp.settings import Settings

logger = logging.getLogger(__name__)

Transport = Literal["http", "sse"]

PATHS: dict[Transport, str] = {"http": "/mcp", "sse": "/sse"}

BACKLOG = 128
"""Connections waiting to be accepted: the kernel's usual limit."""

MAX_BODY_BYTES = 16 << 20
"""Bytes of a request, which contains the inputs of a call. Larger inputs come as host files."""

MAX_CONNECTIONS = 512
"""Connections open at once; further ones are answered 503. Each call and each stream is one."""

MAX_SESSIONS = 1024
"""Sessions open at once; one that is idle for half an hour ends."""

CLEAN_UP_SECONDS = 20
"""How long cancelled requests may take to clean up, deleting machines included."""

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")


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
        security = TransportSecuritySettings(
            allowed_hosts=[*_with_ports([*LOOPBACK_HOSTS, _in_url(host)]), *settings.allowed_hosts],
            allowed_origins=[
                *_with_ports([f"http://{name}" for name in LOOPBACK_HOSTS]),
                *settings.allowed_origins,
            ],
        )
        app = Application(settings, one_client=False, with_principals=principals is not None)
        server = make_server(
            app, auth=_auth(base, transport) if principals else None, token_verifier=principals
        )
        asgi = RateLimit(
            _asgi(server, transport, security),
            settings.max_requests,
            principals.find if principals else _no_principal,
        )
        async with app:
            logger.info("Serving MCP at %s%s", base, PATHS[transport])
            task_status.started(base + PATHS[transport])
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


def _asgi(
    server: MCPServer[Any], transport: Transport, security: TransportSecuritySettings
) -> Starlette:
    server.custom_route("/healthz", methods=["GET"])(_healthz)
    if transport == "sse":
        return server.sse_app(
            sse_path=PATHS["sse"],
            transport_security=security,
            max_request_body_size=MAX_BODY_BYTES,
        )
    return server.streamable_http_app(
        streamable_http_path=PATHS["http"],
        transport_security=security,
        max_request_body_size=MAX_BODY_BYTES,
        max_sessions=MAX_SESSIONS,
    )


async def _serve(asgi: ASGIApp, listener: socket.socket) -> None:
    requests = _Requests(asgi)
    server = _Server(
        uvicorn.Config(
            requests,
            log_config=None,
            log_level="warning",
            access_log=False,
            limit_concurrency=MAX_CONNECTIONS,
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


def _auth(base: str, transport: Transport) -> AuthSettings:
    # Tokens are given to this server in its settings, so it is their only issuer.
    return AuthSettings(
        issuer_url=AnyHttpUrl(base),
        resource_server_url=AnyHttpUrl(base + PATHS[transport]),
        validate_token_resource=False,
    )


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


def _with_ports(names: Sequence[str]) -> list[str]:
    """Each name with any port, and without one, since clients omit the scheme's own."""
    return [value for name in names for value in (name, f"{name}:*")]
