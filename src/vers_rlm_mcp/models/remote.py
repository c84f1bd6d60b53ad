"""The base of models behind a provider's SDK: the client, retries and error translation."""

from __future__ import annotations

import base64
import re
from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import anyio
import httpx2
from anyio import to_thread

from vers_rlm_mcp.errors import ModelError, ModelFailed, ModelUnavailable
from vers_rlm_mcp.retries import PassingFault, retry_after, with_retries
from vers_rlm_mcp.values import Completion

from .base import Model
from .prices import PRICES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vers_rlm_mcp.values import Message, Usage

    from .reply import ReplyParts


class Client(Protocol):
    """The interface shared by the SDKs' clients."""

    async def close(self) -> None:
        """Close the connections."""
        ...


ClientT = TypeVar("ClientT", bound=Client)

TIMEOUT = httpx2.Timeout(300.0, connect=10.0)
"""Seconds without data on a connection. A model on slow hardware may read a prompt for minutes."""

CLOSE_TIMEOUT = 2.0
"""Time limit for closing idle connections; any that remain are closed with the process."""

MAX_WORDS = 500
"""Length to which a provider's message is cut in an error; some providers return a web page."""

_UNPRINTABLE = re.compile(r"[^\x21-\x7e]")
_LOOKS_LIKE_A_KEY = re.compile(r"\b(sk|key)-[\w*.-]{8,}|(?<=Bearer )\S+|(?<=Basic )\S+")
_TRANSIENT_STATUS = frozenset({408, 409, 429})
_FOREIGN_ROOTS = (
    httpx2.HTTPError,
    httpx2.StreamError,
    httpx2.InvalidURL,
    httpx2.CookieConflict,
)
# Raised while parsing a malformed reply: invalid JSON or UTF-8, missing fields.
_MALFORMED = (ValueError, TypeError, AttributeError, KeyError)


class PassingModelFault(ModelFailed, PassingFault):
    """A fault that a retry may overcome. It never leaves this package."""


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
        said = f"{self.provider} answered {status} for `{self.model}`: {self.quote(words)}"
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
            return PassingModelFault(said, retry_after(headers))
        return ModelFailed(said)

    def broken(self, what: str, error: BaseException | None = None) -> PassingModelFault:
        """Create the error for a failed exchange: no connection, or a malformed reply."""
        cause = f" ({self.quote(f'{type(error).__name__}: {error}')})" if error else ""
        return PassingModelFault(
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


class RemoteModel(Model, Generic[ClientT]):
    """A model behind a provider's SDK. The first call imports the SDK in a worker thread."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.name = f"{endpoint.provider}:{endpoint.model}"
        self.price = PRICES.get(endpoint.model)
        self._endpoint = endpoint
        self._client: ClientT | None = None
        self._opening = anyio.Lock()

    @abstractmethod
    def _open(self) -> ClientT:
        """Import the SDK and create its client. Runs in a worker thread."""

    @abstractmethod
    async def _ask(
        self, client: ClientT, messages: Sequence[Message], max_tokens: int | None
    ) -> Completion:
        """Make one attempt. Its errors are translated by `_attempt`."""

    @abstractmethod
    def _sdk_error(self) -> type[Exception]:
        """The base class of the SDK's errors."""

    @abstractmethod
    def _translate(self, error: Exception) -> ModelError:
        """Translate an error of the SDK."""

    async def complete(
        self, messages: Sequence[Message], *, max_tokens: int | None = None
    ) -> Completion:
        """Request a reply; the first call imports the SDK."""
        client = await self._get_client()
        return await with_retries(
            lambda: self._attempt(client, messages, max_tokens), failed=ModelFailed
        )

    async def aclose(self) -> None:
        """Close the connections, within `CLOSE_TIMEOUT` seconds."""
        client, self._client = self._client, None
        if client is not None:
            with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
                await client.close()

    async def _get_client(self) -> ClientT:
        async with self._opening:
            if self._client is None:
                # An SDK takes a second to import. If cancelled, the thread finishes unattended.
                self._client = await to_thread.run_sync(self._open_checked, abandon_on_cancel=True)
            return self._client

    def _add_price(self, usage: Usage) -> Usage:
        return replace(usage, usd=None if self.price is None else self.price.usd(usage))

    def _completion(
        self, parts: ReplyParts, usage: Usage, *, estimated: bool = False
    ) -> Completion:
        """The completion that an attempt has produced, if it is one."""
        match parts.stop_reason:
            case None:
                raise self._endpoint.broken("ended its reply before it was complete")
            case "failed" | "paused":
                raise PassingModelFault(
                    f"{self._endpoint.provider} broke off its reply for `{self._endpoint.model}`: "
                    f"{self._endpoint.quote(str(parts.stop_word))}."
                )
            case reason:
                return Completion(
                    parts.text, usage, reason, estimated=estimated, thoughts=parts.thoughts
                )

    def _open_checked(self) -> ClientT:
        try:
            return self._open()
        except (ImportError, ValueError, httpx2.InvalidURL) as error:
            words = self._endpoint.quote(str(error))
            raise ModelUnavailable(
                f"The client for {self._endpoint.provider} cannot be created: {words} "
                "Check the environment's proxy variables, and the installation."
            ) from None

    async def _attempt(
        self, client: ClientT, messages: Sequence[Message], max_tokens: int | None
    ) -> Completion:
        # `from None`: the foreign error contains the request, with the key in its headers.
        try:
            return await self._ask(client, messages, max_tokens)
        except ModelError:
            raise
        except self._sdk_error() as error:
            raise self._translate(error) from None
        except _FOREIGN_ROOTS as error:
            raise self._endpoint.broken("broke the connection", error) from None
        except _MALFORMED as error:
            raise self._endpoint.broken("sent a malformed reply", error) from None
