"""A model's endpoint: its address and key, and the errors that it causes, without secrets."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import httpx2

from vers_rlm_mcp.errors import ModelError, ModelFailed, ModelUnavailable
from vers_rlm_mcp.retries import PassingFault, retry_after

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vers_rlm_mcp.values import Usage

MAX_WORDS = 500
"""Length to which a provider's message is cut in an error; some providers return a web page."""

_UNPRINTABLE = re.compile(r"[^\x21-\x7e]")
_LOOKS_LIKE_A_KEY = re.compile(r"\b(sk|key)-[\w*.-]{8,}|(?<=Bearer )\S+|(?<=Basic )\S+")
_TRANSIENT_STATUS = frozenset({408, 409, 429})
_OVERLOADED = frozenset({429, 503, 529})
RATE_LIMIT_ATTEMPTS = 8
"""Attempts against a rate limit without another success: a minute, for which most limits hold."""

PAID_ATTEMPTS = 3
"""Attempts at a reply that breaks off, since the provider may charge for each."""


class PassingModelFault(ModelFailed, PassingFault):
    """A fault that a retry may overcome. It never leaves this package."""

    is_overload = False
    """Whether fewer calls at once may avoid it."""
    is_paid = False
    """Whether the provider may charge for what it sent."""
    spent: Usage | None = None
    """What the provider reports to have charged."""


class BlankAnswer(PassingModelFault):
    """Neither a reply nor an error: an empty body, a web page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One model at one address. Its error messages never contain secrets."""

    provider: str
    model: str
    url: str
    url_variable: str
    key_variable: str
    key: str = field(repr=False)
    credentials: str | None = field(default=None, repr=False)
    """``user:password`` from the base URL, stored separately because URLs are logged."""

    @classmethod
    def from_environment(
        cls,
        env: Mapping[str, str],
        *,
        provider: str,
        model: str,
        default_url: str,
        default_key: str = "",
    ) -> Endpoint:
        """Create the endpoint described by ``<PROVIDER>_API_KEY`` and ``<PROVIDER>_BASE_URL``.

        Raises `ModelUnavailable` if either is unusable.
        """
        key_variable = f"{provider.upper()}_API_KEY"
        url_variable = f"{provider.upper()}_BASE_URL"
        key = env.get(key_variable, "").strip() or default_key
        if not key:
            raise ModelUnavailable(f"No key for {provider}: set {key_variable}.")
        if _UNPRINTABLE.search(key):
            raise ModelUnavailable(
                f"{key_variable} contains characters that are invalid in a key: copy it again."
            )
        url, credentials = _separate_credentials(
            env.get(url_variable, "").strip() or default_url, url_variable
        )
        return cls(
            provider=provider,
            model=model,
            url=url,
            url_variable=url_variable,
            key_variable=key_variable,
            key=key,
            credentials=credentials,
        )

    @property
    def headers(self) -> dict[str, str]:
        """Headers to send with every request, in addition to the SDK's own."""
        return {} if self.credentials is None else {"Authorization": f"Basic {self._basic}"}

    @property
    def address(self) -> str:
        """The base URL for use in errors, without its query, which may contain a key."""
        return self.url.partition("?")[0]

    @property
    def _basic(self) -> str:
        return base64.b64encode((self.credentials or "").encode()).decode()

    def quote(self, words: str) -> str:
        """Quote a provider's message on one line, cut to `MAX_WORDS`, with secrets redacted."""
        password = (self.credentials or "").partition(":")[2]
        secrets = {self.key, self.credentials, self._basic, password}
        for secret in sorted(filter(None, secrets), key=len, reverse=True):
            words = words.replace(secret, "[redacted]")
        words = " ".join(_LOOKS_LIKE_A_KEY.sub("[redacted]", words).split())
        return words if len(words) <= MAX_WORDS else f"{words[:MAX_WORDS]}…"

    def status_error(self, status: int, words: str, headers: Mapping[str, str]) -> ModelError:
        """Translate an HTTP status of 400 or more."""
        words = self.quote(words) or "(no explanation)"
        said = f"{self.provider} answered {status} for `{self.model}`: {words}"
        if status in {401, 403}:
            return ModelUnavailable(f"{said} Check {self.key_variable}.")
        if status == 402:
            return ModelUnavailable(f"{said} Check the account's billing.")
        if status == 404:
            return ModelUnavailable(
                f"{said} Check the model's name and {self.url_variable} ({self.address})."
            )
        advice = headers.get("x-should-retry")
        if advice != "false" and (advice == "true" or status in _TRANSIENT_STATUS or status >= 500):
            fault = PassingModelFault(said, retry_after(headers, words))
            fault.is_overload = status in _OVERLOADED
            if status == 429:
                fault.max_attempts = RATE_LIMIT_ATTEMPTS
            return fault
        return ModelFailed(said)

    def broken(self, what: str, error: BaseException | None = None) -> PassingModelFault:
        """Create the error for a failed exchange: no connection, or a malformed reply."""
        return PassingModelFault(self._describe(what, error))

    def broken_off(self, error: BaseException | None = None) -> PassingModelFault:
        """Create the error for a reply that has begun and not ended."""
        fault = PassingModelFault(self._describe("ended its reply before it was complete", error))
        fault.is_overload = fault.is_paid = True
        fault.max_attempts = PAID_ATTEMPTS
        return fault

    def endless(self, error: BaseException) -> ModelFailed:
        """Create the error for a reply beyond all bounds, of which another would be the same."""
        return ModelFailed(self._describe("sent too long a reply", error))

    def blank(self, what: str) -> BlankAnswer:
        """Create the error for an answer that is neither a reply nor an error."""
        blank = BlankAnswer(self._describe(what, None))
        blank.max_attempts = PAID_ATTEMPTS
        return blank

    def _describe(self, what: str, error: BaseException | None) -> str:
        cause = f" ({self.quote(f'{type(error).__name__}: {error}')})" if error else ""
        return (
            f"{self.provider} at {self.address} {what}{cause}. "
            f"Check the network and {self.url_variable}."
        )


def _separate_credentials(url: str, variable: str) -> tuple[str, str | None]:
    """Separate user and password from a base URL. Errors do not repeat the URL."""
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        parsed = httpx2.URL()
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise ModelUnavailable(f"{variable} is not the address of a server: use http(s)://HOST/….")
    if not parsed.userinfo:
        return url, None
    clean = parsed.copy_with(username=None, password=None)
    return str(clean), f"{parsed.username}:{parsed.password}"
