"""Principals: over HTTP each bearer token is one, with its own machines and runs.

Without tokens there is one caller, the user who runs the server, to whom everything belongs. The
ledger names a principal by a salted hash, from which its token cannot be recovered.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import tempfile
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from mcp.server.auth.middleware.auth_context import AuthContextMiddleware, get_access_token
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from vers_rlm_mcp.errors import SettingsError
from vers_rlm_mcp.store import make_state_directory, set_aside

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from starlette.types import ASGIApp, Receive, Scope, Send

    from vers_rlm_mcp.settings import Settings

TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]{16,}=*")
"""A bearer token that can be sent (RFC 6750, section 2.1) and is too long to be guessed."""

SALT_BYTES: Final = 16

HASH: Final = {"n": 2**14, "r": 8, "p": 1, "dklen": 16}
"""Parameters of scrypt: a guess takes some 50 ms, as does each token when the server starts."""


class Principals:
    """The principals of a server."""

    def __init__(self, tokens: Sequence[str], salt: bytes) -> None:
        self._tokens = {_principal(token, salt): token.encode() for token in tokens}

    def __len__(self) -> int:
        """How many there are."""
        return len(self._tokens)

    def find(self, token: str) -> str | None:
        """The principal of a token, if any. Takes the same time for every wrong token."""
        given = token.encode()
        matching = [
            principal
            for principal, known in self._tokens.items()
            if hmac.compare_digest(given, known)
        ]
        return matching[0] if matching else None


class RequireToken:
    """ASGI middleware that answers 401 to a request without a valid token.

    The answer names no metadata: the tokens are in the settings, so that there is nothing where a
    client could register or ask for one.

    Args:
        asgi: Receives the requests that pass, with their principal.
        principals: The principals.
        public: Receives the requests that need no token.
    """

    def __init__(self, asgi: ASGIApp, principals: Principals, public: ASGIApp) -> None:
        self._asgi = AuthContextMiddleware(asgi)
        self._principals = principals
        self._public = public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 401."""
        if scope["type"] != "http" or scope["path"].endswith("/healthz"):
            await self._public(scope, receive, send)
            return
        token = bearer_token(scope)
        principal = self._principals.find(token)
        if principal is None:
            fault = "The token is unknown" if token else "There is no bearer token"
            reply = JSONResponse(
                {"error": f"{fault}: send the header `Authorization: Bearer TOKEN`."},
                status_code=401,
                headers={"WWW-Authenticate": "Bearer"},
            )
            await reply(scope, receive, send)
            return
        user = AuthenticatedUser(AccessToken(token=token, client_id=principal, scopes=[]))
        await self._asgi({**scope, "user": user}, receive, send)


def bearer_token(scope: Scope) -> str:
    """The bearer token of a request; "" if it has none."""
    kind, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


def caller() -> str | None:
    """The principal of the current call; None if clients present no tokens."""
    token = get_access_token()
    return token.client_id if token else None


def open_principals(settings: Settings) -> Principals | None:
    """The principals in the settings; None if clients need no token.

    Raises:
        SettingsError: A token could be guessed or cannot be sent, or a file cannot be used.
    """
    tokens = list(dict.fromkeys([*settings.token, *_tokens_in(settings.token_file)]))
    if not all(TOKEN.fullmatch(token) for token in tokens):
        raise SettingsError(
            "A bearer token has at least 16 characters, of letters, digits and -._~+/ only. "
            "`openssl rand -hex 32` makes a good one."
        )
    return Principals(tokens, _salt(settings.state_dir)) if tokens else None


def _tokens_in(file: Path | None) -> list[str]:
    if file is None:
        return []
    try:
        lines = [line.strip() for line in file.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"The file of tokens, {file}, cannot be read: {error}.") from error
    tokens = [line for line in lines if line and not line.startswith("#")]
    if not tokens:
        raise SettingsError(f"The file of tokens, {file}, has none: write one on each line.")
    return tokens


def _principal(token: str, salt: bytes) -> str:
    return hashlib.scrypt(token.encode(), salt=salt, **HASH).hex()


def _salt(state_dir: Path) -> bytes:
    """The salt of a state directory, made by the first server that needs it."""
    path = state_dir / "salt"
    try:
        make_state_directory(state_dir)
        if path.exists() and (not path.is_file() or path.stat().st_size != SALT_BYTES):
            advice = "What clients with tokens had made is now seen by the operator alone"
            set_aside(path, "it is not a salt", advice)
        with tempfile.NamedTemporaryFile(dir=state_dir) as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(secrets.token_bytes(SALT_BYTES))
            file.flush()
            os.fsync(file.fileno())
            with suppress(FileExistsError):
                path.hardlink_to(file.name)  # whole, or not at all
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(
            f"The file {path} cannot be used: {error.strerror}. Set VERS_RLM_STATE_DIR to a "
            "directory that you may write to."
        ) from error
