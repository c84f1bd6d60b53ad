"""Which HTTP requests are let in: from known names and origins, at one path, of one length.

A page that a browser shows can send requests to this computer. Its `Origin` tells which page that
is, and `Host` tells by which name it found this server, which may have been rebound to it.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from mcp_types import INVALID_REQUEST
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from vers_rlm_mcp.errors import SettingsError

from .wire import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from starlette.types import ASGIApp, Receive, Scope, Send

LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")

DEFAULT_PORTS: Final = {"http": 80, "https": 443}

AUTHORITY: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:@/?#\\\s%,*]+)(?::([0-9]{0,5}|\*))?")
"""A host, and a port if there is one; in settings, `*` stands for every port."""

SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)

PREFIX: Final = re.compile(r"(?:/[A-Za-z0-9._~-]+){1,16}")
"""A path prefix that a proxy may have removed."""

WELL_KNOWN: Final = "/.well-known/"
"""Where clients look for metadata about an endpoint, whose path follows."""

EXPOSED_HEADERS: Final = (
    "Mcp-Session-Id",
    "Mcp-Protocol-Version",
    "WWW-Authenticate",
    "Retry-After",
)
"""Headers that a page's client needs to read."""

PREFLIGHT_SECONDS: Final = 7200
"""How long browsers may remember what they asked: the longest that they do."""

SHOWN_CHARS: Final = 200
"""Characters of a header that a refusal repeats."""


@dataclass(frozen=True, slots=True)
class Authority:
    """A host and a port, in the form in which they are compared."""

    host: str
    port: int | None
    """None if it is not given."""
    any_port: bool = False

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """An authority as a header or a setting has it; None if it is none."""
        if text.count(":") > 1 and not text.startswith("["):
            text = f"[{text}]"  # an IPv6 address as people write it
        match = AUTHORITY.fullmatch(text)
        if not match:
            return None
        host, port = match[1], match[2] or ""
        try:
            host = f"[{ipaddress.IPv6Address(host[1:-1])}]" if host.startswith("[") else _name(host)
        except ValueError:
            return None
        number = int(port) if port.isdecimal() else None
        if not host or (number or 0) > 65_535:
            return None
        return cls(host, number, port == "*")

    def matches(self, other: Authority, defaults: Iterable[int]) -> bool:
        """Whether a request's authority is this one; a port that is not given is a default one."""
        if self.host != other.host:
            return False
        ports, others = ({it.port} if it.port else {*defaults} for it in (self, other))
        return self.any_port or bool(ports & others)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a page comes from, in the form in which it is compared."""

    scheme: str
    authority: Authority

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """An origin as a header or a setting has it; None if it is none."""
        match = SCHEME.fullmatch(text)
        authority = Authority.parse(match[2]) if match else None
        return cls(match[1].lower(), authority) if match and authority else None

    def matches(self, other: Origin) -> bool:
        """Whether a request's origin is this one."""
        defaults = (DEFAULT_PORTS.get(self.scheme, 0),)
        return self.scheme == other.scheme and self.authority.matches(other.authority, defaults)


class Guard:
    """ASGI middleware that refuses other names and origins, and lets browsers use the allowed ones.

    Args:
        asgi: Receives the requests that pass.
        host: The host that the server listens on.
        allowed_hosts: Further hosts, as the setting has them.
        allowed_origins: Further origins, as the setting has them.

    Raises:
        SettingsError: A host or an origin in the settings is none.
    """

    def __init__(
        self,
        asgi: ASGIApp,
        host: str,
        allowed_hosts: Sequence[str] = (),
        allowed_origins: Sequence[str] = (),
    ) -> None:
        own = [f"{name}:*" for name in (*LOOPBACK, f"[{host}]" if ":" in host else host)]
        # An address with a zone is not what clients send as a host.
        known = [authority for text in own if (authority := Authority.parse(text))]
        self._hosts = [*known, *(_host(text) for text in allowed_hosts)]
        pages = [f"{scheme}://{name}:*" for scheme in DEFAULT_PORTS for name in LOOPBACK]
        self._origins = [_origin(text) for text in (*pages, *allowed_origins)]
        self._cors = _Cors(asgi, self._allows_origin)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http" or scope["path"].endswith("/healthz"):
            await self._cors.app(scope, receive, send)
            return
        refusal = self._refuse(Headers(scope=scope))
        await (refusal or self._cors)(scope, receive, send)

    def _refuse(self, headers: Headers) -> Response | None:
        if "content-length" in headers and "transfer-encoding" in headers:
            # A proxy may have read the other of the two.
            text = "A request has either Content-Length or Transfer-Encoding."
            return refuse(400, text, {"Connection": "close"})
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) != 1 or not self._allows_host(hosts[0]):
            return refuse(421, _unknown("Host", hosts, "allowed-hosts"))
        if len(origins) > 1 or (origins and not self._allows_origin(origins[0])):
            return refuse(403, _unknown("Origin", origins, "allowed-origins"))
        return None

    def _allows_host(self, text: str) -> bool:
        host = Authority.parse(text)
        defaults = DEFAULT_PORTS.values()  # a proxy may have ended TLS
        return bool(
            host and not host.any_port and any(it.matches(host, defaults) for it in self._hosts)
        )

    def _allows_origin(self, text: str) -> bool:
        origin = Origin.parse(text)
        return bool(
            origin
            and not origin.authority.any_port
            and any(it.matches(origin) for it in self._origins)
        )


class _Cors(CORSMiddleware):
    """Tells browsers what pages of allowed origins may do: all that other clients may."""

    def __init__(self, asgi: ASGIApp, allows: Callable[[str], bool]) -> None:
        super().__init__(
            asgi,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("*",),
            allow_private_network=True,
            expose_headers=EXPOSED_HEADERS,
            max_age=PREFLIGHT_SECONDS,
        )
        self._allows = allows

    def is_allowed_origin(self, origin: str) -> bool:
        """Whether a page of this origin may use the server."""
        return self._allows(origin)


class Paths:
    """ASGI middleware that finds the endpoint in a path that a proxy or a user has changed.

    A prefix, with which a proxy reaches the server, becomes the application's root path; so does
    one that the proxy removed and names in `X-Forwarded-Prefix`. A slash at the end is ignored.

    Args:
        asgi: Receives the requests for an endpoint.
        endpoints: The paths of the endpoints.
    """

    def __init__(self, asgi: ASGIApp, endpoints: Sequence[str]) -> None:
        self._asgi = asgi
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer that there is nothing at its path."""
        if scope["type"] != "http":
            await self._asgi(scope, receive, send)
            return
        path = scope["path"].rstrip("/")
        for endpoint in self._endpoints:
            if path.endswith(endpoint.rstrip("/")) and WELL_KNOWN not in path:
                removed = Headers(scope=scope).get("x-forwarded-prefix", "").rstrip("/")
                root = removed if PREFIX.fullmatch(removed) else ""
                root += path.removesuffix(endpoint.rstrip("/")).rstrip("/")
                found = {"root_path": root, "path": root + endpoint}
                await self._asgi({**scope, **found}, receive, send)
                return
        text = f"There is nothing at this path: MCP is served at {self._endpoints[0]}."
        await refuse(404, text)(scope, receive, send)


def refuse(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    """The response to a request that is not served: an error that belongs to no message."""
    body = Refusal(INVALID_REQUEST, text).encode()
    return Response(body, status, headers, media_type="application/json")


def _name(host: str) -> str:
    """A host name as DNS compares it: in lower case, in ASCII, without the dot of the root."""
    return host.encode("idna").decode().lower().removesuffix(".")


def _host(text: str) -> Authority:
    if host := Authority.parse(text):
        return host
    raise SettingsError(f"--allowed-hosts: {text!r} is not of the form NAME, NAME:PORT or NAME:*.")


def _origin(text: str) -> Origin:
    if origin := Origin.parse(text.removesuffix("/")):
        return origin
    raise SettingsError(
        f"--allowed-origins: {text!r} is not of the form https://NAME or https://NAME:PORT."
    )


def _unknown(header: str, values: Sequence[str], setting: str) -> str:
    value = ", ".join(values)[:SHOWN_CHARS] or "(none)"
    return (
        f"{header} {value} is not allowed. If it is yours, start the server with --{setting} "
        f"{value if len(values) == 1 else 'NAME'} (VERS_RLM_{setting.replace('-', '_').upper()})."
    )
