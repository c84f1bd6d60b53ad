"""What the models behind a provider's SDK share: the client, the retries and the error texts."""

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

from .base import Model
from .prices import PRICES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vers_rlm_mcp.values import Completion, Message, Usage


class Client(Protocol):
    """What the SDKs' clients have in common."""

    async def close(self) -> None:
        """Close the connections."""
        ...


ClientT = TypeVar("ClientT", bound=Client)

TIMEOUT = httpx2.Timeout(300.0, connect=10.0)
"""Seconds of silence on a connection; a model on a slow machine may read a prompt for minutes."""

CLOSE_TIMEOUT = 2.0
"""Seconds to close idle connections politely; what is left closes with the process."""

MAX_WORDS = 500
"""Characters of a provider's own words in an error; some answer with a web page."""

_UNPRINTABLE = re.compile(r"[^\x21-\x7e]")
_LOOKS_LIKE_A_KEY = re.compile(r"\b(sk|key)-[\w*.-]{8,}|(?<=Bearer )\S+|(?<=Basic )\S+")
_PASSING_STATUS = frozenset({408, 409, 429})
_FOREIGN_ROOTS = (
    httpx2.HTTPError,
    httpx2.StreamError,
    httpx2.InvalidURL,
    httpx2.CookieConflict,
)
# What reading a malformed reply raises: broken JSON or UTF-8, and fields that are not there.
_MALFORMED = (ValueError, TypeError, AttributeError, KeyError)


class PassingModelFault(ModelFailed, PassingFault):
    """The provider may answer later. Does not leave this room."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One model at one address, and how to speak of it without giving its secrets away."""

    provider: str
    model: str
    url: str
    url_variable: str
    key_variable: str
    key: str = field(repr=False)
    credentials: str | None = field(default=None, repr=False)
    """``user:password`` of the base URL, kept out of it since URLs are logged."""

    @classmethod
    def from_environment(
        cls,
        env: Mapping[str, str],
        provider: str,
        model: str,
        default_url: str,
        default_key: str = "",
    ) -> Endpoint:
        """The endpoint that ``<PROVIDER>_API_KEY`` and ``<PROVIDER>_BASE_URL`` describe.

        Raises `ModelUnavailable` when either cannot be used.
        """
        key_variable = f"{provider.upper()}_API_KEY"
        url_variable = f"{provider.upper()}_BASE_URL"
        key = env.get(key_variable, "").strip() or default_key
        if not key:
            raise ModelUnavailable(f"No key for {provider}: set {key_variable}.")
        if _UNPRINTABLE.search(key):
            raise ModelUnavailable(
                f"{key_variable} holds characters that no key has: copy it anew."
            )
        url, credentials = _split_credentials(
            env.get(url_variable, "").strip() or default_url, url_variable
        )
        return cls(provider, model, url, url_variable, key_variable, key, credentials)

    @property
    def headers(self) -> dict[str, str]:
        """What goes with every request, over what the SDK sends."""
        return {} if self.credentials is None else {"Authorization": f"Basic {self._basic}"}

    @property
    def address(self) -> str:
        """The base URL as far as it is fit for an error: a query may hold a key."""
        return self.url.partition("?")[0]

    @property
    def _basic(self) -> str:
        return base64.b64encode((self.credentials or "").encode()).decode()

    def quote(self, words: str) -> str:
        """A provider's words, on one line, bounded, and without anything secret."""
        password = (self.credentials or "").partition(":")[2]
        secrets = {self.key, self.credentials, self._basic, password}
        for secret in sorted(filter(None, secrets), key=len, reverse=True):
            words = words.replace(secret, "[redacted]")
        words = " ".join(_LOOKS_LIKE_A_KEY.sub("[redacted]", words).split())
        return words if len(words) <= MAX_WORDS else f"{words[:MAX_WORDS]}…"

    def status_error(self, status: int, words: str, headers: Mapping[str, str]) -> ModelError:
        """What an answer with an HTTP status of 400 or more means to the caller."""
        said = f"{self.provider} answered {status} for `{self.model}`: {self.quote(words)}"
        if status in {401, 403}:
            return ModelUnavailable(f"{said} Check {self.key_variable}.")
        if status == 402:
            return ModelUnavailable(f"{said} Check the billing of the account.")
        if status == 404:
            return ModelUnavailable(
                f"{said} Check the model's name and {self.url_variable} ({self.address})."
            )
        advice = headers.get("x-should-retry")
        if advice != "false" and (advice == "true" or status in _PASSING_STATUS or status >= 500):
            return PassingModelFault(said, retry_after(headers))
        return ModelFailed(said)

    def broken(self, what: str, error: BaseException | None = None) -> PassingModelFault:
        """The exchange itself broke: no connection, or a reply that is not one."""
        cause = f" ({self.quote(f'{type(error).__name__}: {error}')})" if error else ""
        return PassingModelFault(
            f"{self.provider} at {self.address} {what}{cause}. "
            f"Check the network and {self.url_variable}."
        )


def _split_credentials(url: str, variable: str) -> tuple[str, str | None]:
    """A base URL without its user and password, and these; the URL is not echoed in errors."""
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
    """A model behind a provider's SDK, which is imported, in a thread, when first used."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.name = f"{endpoint.provider}:{endpoint.model}"
        self.price = PRICES.get(endpoint.model)
        self._endpoint = endpoint
        self._client: ClientT | None = None
        self._opening = anyio.Lock()

    @abstractmethod
    def _open(self) -> ClientT:
        """Import the SDK and make its client. Runs in a worker thread."""

    @abstractmethod
    async def _ask(
        self, client: ClientT, messages: Sequence[Message], max_tokens: int | None
    ) -> Completion:
        """Make one attempt. What it raises goes through `_translate`."""

    @abstractmethod
    def _sdk_error(self) -> type[Exception]:
        """The class that the SDK's own errors derive from."""

    @abstractmethod
    def _translate(self, error: Exception) -> ModelError:
        """What an error of the SDK means."""

    async def complete(
        self, messages: Sequence[Message], *, max_tokens: int | None = None
    ) -> Completion:
        """Ask, as `Model.complete` promises; the first call imports the SDK."""
        client = await self._opened()
        return await with_retries(
            lambda: self._attempt(client, messages, max_tokens), failed=ModelFailed
        )

    async def warm(self) -> None:
        """Import the SDK and make its client, without a word to the provider."""
        await self._opened()

    async def aclose(self) -> None:
        """Close the connections, within `CLOSE_TIMEOUT` seconds."""
        client, self._client = self._client, None
        if client is not None:
            with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
                await client.close()

    async def _opened(self) -> ClientT:
        async with self._opening:
            if self._client is None:
                # An SDK takes a second to import. When that is cancelled, it goes on unheeded.
                self._client = await to_thread.run_sync(self._start, abandon_on_cancel=True)
            return self._client

    def _priced(self, usage: Usage) -> Usage:
        return replace(usage, usd=None if self.price is None else self.price.usd(usage))

    def _start(self) -> ClientT:
        try:
            return self._open()
        except (ImportError, ValueError, httpx2.InvalidURL) as error:
            words = self._endpoint.quote(str(error))
            raise ModelUnavailable(
                f"The client for {self._endpoint.provider} cannot be made: {words} "
                "Check the proxy variables of the environment, and the installation."
            ) from None

    async def _attempt(
        self, client: ClientT, messages: Sequence[Message], max_tokens: int | None
    ) -> Completion:
        # `from None`: the foreign error holds the request, with the key in its headers.
        try:
            return await self._ask(client, messages, max_tokens)
        except ModelError:
            raise
        except self._sdk_error() as error:
            raise self._translate(error) from None
        except _FOREIGN_ROOTS as error:
            raise self._endpoint.broken("broke the connection", error) from None
        except _MALFORMED as error:
            raise self._endpoint.broken("sent what is not a reply", error) from None
