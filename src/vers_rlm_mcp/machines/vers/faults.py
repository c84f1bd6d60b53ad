"""Translates the errors of the service and its libraries: no other module handles them.

MachineError
├── BackendUnavailable
│   └── KeyRefused       the key is wrong or has no right; the user must change something
├── NotThere             no such machine or commit (404)
├── Refused              the request is refused for good; the service's words say why
└── PassingVersFault     it may succeed later: no answer, no readable answer, 429 or 5xx
"""

from __future__ import annotations

import ssl
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import asyncssh
import httpx2

from vers_rlm_mcp.errors import BackendUnavailable, MachineError
from vers_rlm_mcp.replies import ReplyTooLarge, parse_json
from vers_rlm_mcp.retries import PassingFault, retry_after

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .config import VersConfig

MAX_WORDS: Final = 500
"""Characters of the service's message in an error; a proxy may answer with a web page."""

HTTP_ERRORS: Final = (
    httpx2.HTTPError,
    httpx2.StreamError,
    httpx2.InvalidURL,
    httpx2.CookieConflict,
)
"""The roots of what httpx2 raises."""

SSH_ERRORS: Final = (
    asyncssh.Error,
    asyncssh.ChannelListenError,
    asyncssh.PasswordChangeRequired,
    asyncssh.BreakReceived,
    asyncssh.SignalReceived,
    asyncssh.TerminalSizeChanged,
    ValueError,  # keys that cannot be read (KeyImportError and its relatives) derive from it
    OSError,  # what sockets and TLS raise, and time-outs
)
"""The roots of what asyncssh raises, and the streams below it."""

ADVICE: Final = {
    400: "Check the id.",
    402: "Check the billing of the organisation at https://vers.sh.",
    404: "It may have been deleted; list what there is.",
    409: "Something that exists depends on it; delete that first.",
    413: "Ask for less at once.",
    422: "The service may have changed what it takes; look for a newer vers-rlm-mcp.",
    429: "Delete machines that are not needed, or try again later.",
    503: "The service is overloaded or being restarted; try again in some minutes.",
}
"""What to do next, by status. Quota and rate limits are not documented: see `_QUOTA`."""

_QUOTA: Final = ("quota", "limit", "exceed", "capacity", "insufficient", "maximum")
_QUOTA_ADVICE: Final = "Delete machines that are not needed, or ask for smaller ones."
_PASSING_STATUS: Final = frozenset({408, 425, 429})


class KeyRefused(BackendUnavailable):
    """The key is wrong, or may not do this."""


class VersFault(MachineError):
    """The service did not do what was asked."""


class NotThere(VersFault):
    """No machine, commit or endpoint of this name."""


class Refused(VersFault):
    """The request is refused for good.

    `words` are the service's own; `status` is the answer's.
    """

    def __init__(self, message: str, status: int, words: str) -> None:
        super().__init__(message)
        self.status = status
        self.words = words


class PassingVersFault(VersFault, PassingFault):
    """It may succeed later; whether anything was done is not known."""


def refusal(config: VersConfig, what: str, response: httpx2.Response) -> MachineError:
    """What an answer with a status of 400 or more means.

    Args:
        config: The configuration, with the key that must not be quoted.
        what: The request, for the message: ``delete machine 12ab…``.
        response: Read to its end.
    """
    status = response.status_code
    words, is_json = _words(response)
    said = f"Vers cannot {what}: {quote(config, words) or 'no reason is given'} ({status})."
    # A bad key is answered with a 403 in plain text, although 401 is documented. A 403 in JSON is
    # about the thing requested, such as deleting an unknown machine.
    if status == HTTPStatus.UNAUTHORIZED or (status == HTTPStatus.FORBIDDEN and not is_json):
        return KeyRefused(
            f"Vers does not accept the key in {config.key.source}, at {config.api_url} ({status}). "
            "Check that it is whole, not expired, and of this service."
        )
    if any(word in words.lower() for word in _QUOTA) and status != HTTPStatus.NOT_FOUND:
        return Refused(f"{said} {_QUOTA_ADVICE}", status, words)
    advised = f"{said} {ADVICE[status]}" if status in ADVICE else said
    if status == HTTPStatus.NOT_FOUND:
        return NotThere(advised)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _PASSING_STATUS:
        return PassingVersFault(advised, retry_after(response.headers))
    return Refused(advised, status, words)


def translated(config: VersConfig, what: str, error: Exception) -> MachineError:
    """What an error of httpx2, asyncssh, TLS or a socket means."""
    host = config.url
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return BackendUnavailable(
                f"The TLS certificate of Vers cannot be verified, so nothing was sent to {host}: "
                f"{cause}. Name the file of its authority with "
                "VERS_RLM_VERS_CA_FILE; VERS_RLM_VERS_INSECURE=true would trust anyone."
            )
    described = quote(config, f"{type(error).__name__}: {error}")
    if isinstance(error, ReplyTooLarge):
        return MachineError(
            f"Vers does not come to an end: cannot {what} ({described}). See https://vers.sh for "
            "its status."
        )
    if isinstance(error, (httpx2.InvalidURL, httpx2.UnsupportedProtocol)):
        return BackendUnavailable(f"{host} is no address that can be asked ({described}).")
    if isinstance(error, TimeoutError | httpx2.TimeoutException):
        said = f"Vers did not answer in time: cannot {what} ({described})."
    elif isinstance(error, httpx2.ConnectError):
        said = f"Vers cannot be reached at {host}: cannot {what} ({described})."
    else:
        said = f"The connection to Vers broke: cannot {what} ({described})."
    return PassingVersFault(f"{said} Check the network; see https://vers.sh for its status.")


def garbled(config: VersConfig, what: str, response: httpx2.Response) -> PassingVersFault:
    """The error for a successful response with an unexpected body."""
    words = quote(config, _text(response))
    return PassingVersFault(
        f"Vers answered what is no answer to `{what}` ({response.status_code}): {words!r}. "
        "If this stays so, the service has changed: look for a newer vers-rlm-mcp."
    )


def quote(config: VersConfig, words: str) -> str:
    """Foreign text on one line, shortened, without the key and without control characters."""
    words = " ".join(words.replace(config.key.value, "[redacted]").split())
    words = words if len(words) <= MAX_WORDS else f"{words[:MAX_WORDS]}…"
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in words)


def _words(response: httpx2.Response) -> tuple[str, bool]:
    """What a refusal says, and whether it is one of the application's, in JSON."""
    try:
        data: Any = parse_json(response.content)
    except ValueError:
        return _text(response), False
    if not isinstance(data, dict):
        return _text(response), False
    for name in ("error", "message", "detail"):
        value: Any = data.get(name)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        if isinstance(value, str):
            return value, True
    return _text(response), True


def _text(response: httpx2.Response) -> str:
    """A reply's body, whatever its headers say of it: the charset that they name may be none."""
    return response.content.decode(errors="replace")


def _causes(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__
