"""Nothing of httpx2, asyncssh, TLS or a socket gets out of the room."""

from __future__ import annotations

import inspect
import json
import ssl
from typing import TYPE_CHECKING

import asyncssh
import httpx2
import pytest

from vers_rlm_mcp.errors import BackendUnavailable, MachineError
from vers_rlm_mcp.machines.vers import Key, VersConfig
from vers_rlm_mcp.machines.vers.faults import (
    HTTP_ERRORS,
    MAX_WORDS,
    SSH_ERRORS,
    KeyRefused,
    NotThere,
    PassingVersFault,
    Refused,
    refusal,
    translated,
)

if TYPE_CHECKING:
    from types import ModuleType

KEY = "12345678-1234-4234-8234-123456789abc" + "0123456789abcdef" * 4
CONFIG = VersConfig(Key(KEY, "VERS_API_KEY"))


def errors_of(library: ModuleType) -> list[type[Exception]]:
    """Every error that a library exports."""
    values = vars(library).values()
    return [value for value in values if inspect.isclass(value) and issubclass(value, Exception)]


@pytest.mark.parametrize("error", errors_of(httpx2))
def test_every_error_of_the_http_library_is_caught_and_means_something(
    error: type[Exception],
) -> None:
    assert issubclass(error, (*HTTP_ERRORS, OSError)), f"{error} would slip through"


@pytest.mark.parametrize("error", errors_of(asyncssh))
def test_every_error_of_the_ssh_library_is_caught_and_means_something(
    error: type[Exception],
) -> None:
    assert issubclass(error, SSH_ERRORS), f"{error} would slip through"


@pytest.mark.parametrize(
    "error",
    [
        httpx2.ReadTimeout(KEY),
        httpx2.ConnectError(f"refused, {KEY}"),
        httpx2.RemoteProtocolError("cut"),
        TimeoutError(),
        ConnectionResetError(104, "reset"),
        ssl.SSLError(1, "handshake failure"),
        asyncssh.ConnectionLost("lost"),
        asyncssh.PermissionDenied("no"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_broke_may_pass_and_no_key_is_quoted(error: Exception) -> None:
    fault = translated(CONFIG, "list machines", error)
    assert isinstance(fault, PassingVersFault)
    assert isinstance(fault, MachineError)
    assert "list machines" in str(fault)
    assert KEY not in str(fault)


def test_a_certificate_that_cannot_be_verified_does_not_pass_and_the_remedy_is_named() -> None:
    error = httpx2.ConnectError("failed")
    error.__cause__ = ssl.SSLCertVerificationError(1, "self-signed certificate")
    fault = translated(CONFIG, "list machines", error)
    assert type(fault) is BackendUnavailable
    assert "VERS_RLM_VERS_CA_FILE" in str(fault)


SHAPES = [
    (403, "403 Forbidden", None, KeyRefused, "key in VERS_API_KEY"),
    (401, '{"error": "no"}', "application/json", KeyRefused, "key in VERS_API_KEY"),
    (403, '{"error": "not yours", "success": false}', "application/json", Refused, "not yours"),
    (403, '{"error": "quota exceeded"}', "application/json", Refused, "Delete machines"),
    (400, "Invalid URL: UUID parsing failed", "text/plain", Refused, "UUID parsing failed"),
    (422, "unknown variant `Paused`", "text/plain", Refused, "unknown variant"),
    (404, '{"vms": [], "error": "no such VM"}', "application/json", NotThere, "no such VM"),
    (404, "", None, NotThere, "no reason is given"),
    (409, '{"error": "has descendants"}', "application/json", Refused, "depends on it"),
    (429, "slow down", None, PassingVersFault, "slow down"),
    (503, "<html>" + "x" * 5000, "text/html", PassingVersFault, "overloaded"),
    (500, '{"message": "boom"}', "application/json", PassingVersFault, "boom"),
    (500, '["odd"]', "application/json", PassingVersFault, "odd"),
    (400, f'{{"error": "bad {KEY}"}}', "application/json", Refused, r"bad \[redacted\]"),
]


@pytest.mark.parametrize(("status", "body", "content_type", "kind", "said"), SHAPES)
def test_every_shape_of_refusal_is_told_for_what_it_is(
    status: int, body: str, content_type: str | None, kind: type[MachineError], said: str
) -> None:
    headers = {"content-type": content_type} if content_type else {}
    response = httpx2.Response(status, headers=headers, content=body.encode())
    fault = refusal(CONFIG, "make a machine", response)
    assert type(fault) is kind
    with pytest.raises(kind, match=said):
        raise fault
    assert "make a machine" in str(fault) or kind is KeyRefused
    assert KEY not in str(fault)
    assert len(str(fault)) < MAX_WORDS + 300


def test_how_long_to_wait_is_read_from_a_refusal() -> None:
    response = httpx2.Response(503, headers={"retry-after": "7"}, content=json.dumps({}).encode())
    fault = refusal(CONFIG, "list machines", response)
    assert isinstance(fault, PassingVersFault)
    assert fault.retry_after == 7
