"""The base of models behind a provider's SDK: the client, retries, and forms of request."""

from __future__ import annotations

import logging
import socket
from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import anyio
import httpx2
from anyio import to_thread
from pydantic import JsonValue

from vers_rlm_mcp.errors import ModelError, ModelFailed, ModelUnavailable
from vers_rlm_mcp.replies import ReplyTooLarge
from vers_rlm_mcp.retries import PassingFault, with_retries
from vers_rlm_mcp.values import Completion, Usage

from .base import Model
from .endpoint import PAID_ATTEMPTS, BlankAnswer, Endpoint, PassingModelFault
from .endpoint_memory import MAX_CALLS, EndpointMemory, recall
from .forms import MAX_FORMS, is_about_context, next_form
from .prices import PRICES
from .receiving import Incoming, WebPage
from .refusals import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vers_rlm_mcp.settings import Settings
    from vers_rlm_mcp.values import Message

    from .forms import Form
    from .reply import ReplyParts
    from .usage import Reported


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """What a user sets for a model."""

    max_calls: int = MAX_CALLS
    """Calls in flight at once, for the whole process."""
    fields: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    """Further fields of requests, such as ``temperature``."""

    @classmethod
    def of_root(cls, settings: Settings) -> ModelOptions:
        """Those of the model that writes the code."""
        return cls(max_calls=settings.max_model_calls, fields=settings.model_options)

    @classmethod
    def of_sub(cls, settings: Settings) -> ModelOptions:
        """Those of the model that answers sub-calls."""
        return cls(max_calls=settings.max_model_calls, fields=settings.sub_model_options)


class Client(Protocol):
    """The interface shared by the SDKs' clients."""

    async def close(self) -> None:
        """Close the connections."""
        ...


class Collecting(Protocol):
    """A reply in the course of being received."""

    parts: ReplyParts
    has_begun: bool

    @property
    def usage(self) -> Reported:
        """What the provider has reported so far."""
        ...

    def take(self, document: Mapping[str, Any]) -> None:
        """Take a document of the answer. Raises `Refusal` if it is an error."""
        ...


_log = logging.getLogger(__name__)

ClientT = TypeVar("ClientT", bound=Client)

TIMEOUT = httpx2.Timeout(None, connect=10.0, write=60.0)
"""No limit for an answer to begin: a request may wait in the queue of a slow server, and asking
again would lose its place and pay twice. The caller's time is the limit."""

CONNECTIONS = httpx2.Limits(max_connections=1000, max_keepalive_connections=100)
"""As the SDKs set it: calls are limited elsewhere."""

KEEP_ALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 30), ("TCP_KEEPCNT", 4))
        if hasattr(socket, name)
    ),
]
"""Options for sockets, so that a peer that vanished is noticed after 3 minutes of silence."""

CLOSE_TIMEOUT = 2.0
"""Time limit for closing idle connections; any that remain are closed with the process."""

MAX_PAID = 12
"""Replies to one call that may break off while others succeed: a server that breaks off whatever is
under way when the next request comes does so until there is one request at a time."""

_FOREIGN_ROOTS = (
    httpx2.HTTPError,
    httpx2.StreamError,
    httpx2.InvalidURL,
    httpx2.CookieConflict,
)
# Raised while parsing a malformed reply: invalid JSON or UTF-8, missing fields, deep nesting.
_MALFORMED = (ValueError, TypeError, AttributeError, KeyError, RecursionError)


class RemoteModel(Model, Generic[ClientT]):
    """A model behind a provider's SDK. The first call imports the SDK in a worker thread."""

    def __init__(self, endpoint: Endpoint, options: ModelOptions) -> None:
        self.name = f"{endpoint.provider}:{endpoint.model}"
        self.price = PRICES.get(endpoint.model)
        self._endpoint = endpoint
        self._options = options
        self._client: ClientT | None = None
        self._opening = anyio.Lock()

    @abstractmethod
    def _open(self) -> ClientT:
        """Import the SDK and create its client. Runs in a worker thread."""

    @abstractmethod
    def _request(
        self, messages: Sequence[Message], max_tokens: int | None, form: Form
    ) -> dict[str, Any]:
        """The body of a request in a form."""

    @abstractmethod
    async def _exchange(
        self, client: ClientT, messages: Sequence[Message], request: dict[str, Any]
    ) -> Completion:
        """Make a request. Raises `Refusal`, or what `_attempt` translates."""

    @abstractmethod
    def _sdk_error(self) -> type[Exception]:
        """The base class of the SDK's errors."""

    @abstractmethod
    def _translate(self, error: Exception) -> ModelError | Refusal:
        """Translate an error of the SDK."""

    async def complete(
        self, messages: Sequence[Message], *, max_tokens: int | None = None
    ) -> Completion:
        """Request a reply; the first call imports the SDK."""
        client = await self._get_client()
        calls = self._memory.calls
        calls.set_most(self._options.max_calls)
        spent = Usage()
        successes, paid = calls.successes, 0

        async def attempt() -> Completion:
            nonlocal spent
            halved = await calls.acquire()
            try:
                completion = await self._attempt(client, messages, max_tokens)
            except PassingModelFault as fault:
                spent += fault.spent or Usage()
                if fault.is_overload:
                    calls.report_overload(halved, fault.retry_after)
                raise
            else:
                calls.report_success()
                return completion
            finally:
                calls.release()

        def forgives(fault: PassingFault) -> bool:
            """Whether it is only a matter of turns: others succeed, and overload is at fault."""
            nonlocal successes, paid
            before, successes = successes, calls.successes
            if not isinstance(fault, PassingModelFault) or not fault.is_overload:
                return False
            paid += fault.is_paid
            return before != successes and paid <= MAX_PAID

        completion = await with_retries(attempt, failed=ModelFailed, forgives=forgives)
        return replace(completion, usage=spent + completion.usage)

    async def aclose(self) -> None:
        """Close the connections, within `CLOSE_TIMEOUT` seconds."""
        client, self._client = self._client, None
        if client is not None:
            with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
                await client.close()

    @property
    def _memory(self) -> EndpointMemory:
        return recall(self.name, self._endpoint.url, self._endpoint.key)

    async def _get_client(self) -> ClientT:
        async with self._opening:
            if self._client is None:
                # An SDK takes a second to import. If cancelled, the thread finishes unattended.
                self._client = await to_thread.run_sync(self._open_checked, abandon_on_cancel=True)
            return self._client

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
        except Exception as error:  # noqa: BLE001 - translated, or raised again
            raise self._translated(error) from None

    async def _ask(
        self, client: ClientT, messages: Sequence[Message], max_tokens: int | None
    ) -> Completion:
        """Ask in the form that worked last, and after a refusal in others."""
        memory = self._memory
        form = known = memory.form
        keeps_limit = True
        tried = 0
        while True:
            tried += 1
            request = self._request(messages, max_tokens, form)
            answer = await self._try(client, messages, request)
            if isinstance(answer, Completion):
                memory.blanks = 0
                memory.form = form if keeps_limit else replace(form, max_tokens=known.max_tokens)
                return answer
            if isinstance(answer, BlankAnswer):
                memory.blanks += 1
                if memory.blanks == 1 or not form.streams:
                    raise answer
                # Its twin without a stream may say what is wrong.
                form = replace(form, streams=False)
                continue
            following = next_form(form, request, answer)
            if following is None or tried == MAX_FORMS:
                raise self._endpoint.status_error(answer.status, answer.words, answer.headers)
            words = self._endpoint.quote(answer.words)
            _log.info("%s refuses a form of request: %s", self.name, words)
            keeps_limit = keeps_limit and not is_about_context(answer.words)
            form = following

    async def _try(
        self, client: ClientT, messages: Sequence[Message], request: dict[str, Any]
    ) -> Completion | Refusal | BlankAnswer:
        """Make one request. What another form may change is returned."""
        try:
            return await self._exchange(client, messages, request)
        except (Refusal, BlankAnswer) as answer:
            return answer
        except self._sdk_error() as error:
            translated = self._translate(error)
            if isinstance(translated, Refusal):
                return translated
            raise translated from None

    def _translated(self, error: Exception) -> Exception:
        """The error to raise for a foreign one; one of this program is returned as it is."""
        if isinstance(error, self._sdk_error()):
            error = self._translate(error)
        if isinstance(error, Refusal):
            return self._endpoint.status_error(error.status, error.words, error.headers)
        if isinstance(error, ReplyTooLarge):
            return self._endpoint.endless(error)
        if isinstance(error, WebPage):
            return self._endpoint.broken("answered with a web page", error)
        if isinstance(error, TimeoutError):
            return self._endpoint.broken_off(error)
        if isinstance(error, _FOREIGN_ROOTS):
            return self._endpoint.broken("broke the connection", error)
        if isinstance(error, _MALFORMED):
            return self._endpoint.broken("sent a malformed reply", error)
        return error

    def _price(self, usage: Usage) -> Usage:
        if self.price is None or usage.estimated:
            return usage
        return replace(usage, usd=self.price.usd(usage))

    async def _receive(self, incoming: Incoming, reply: Collecting) -> None:
        """Collect the documents of an answer. Raises `Refusal` if one of them is an error."""
        try:
            async with incoming:
                async for document in incoming.documents():
                    reply.take(document)
        except WebPage as page:
            raise self._endpoint.blank(
                f"answered with a web page ({self._endpoint.quote(str(page))})"
            ) from None
        except (*_FOREIGN_ROOTS, TimeoutError) as error:
            if not reply.has_begun or isinstance(error, httpx2.DecodingError):
                raise
            raise self._endpoint.broken_off(error) from None

    def _completion(
        self, messages: Sequence[Message], incoming: Incoming, reply: Collecting
    ) -> Completion:
        """The completion that an exchange has produced, if it is one."""
        usage = self._price(reply.usage.usage(messages, reply.parts.everything))
        parts, reason = reply.parts, reply.parts.stop_reason
        if not reply.has_begun:
            raise self._endpoint.blank("answered with nothing")
        if reason is None and incoming.is_done:
            reason = "end"
        if reason is None or reason == "failed" or reason == "paused":
            fault = self._endpoint.broken_off()
            if reason == "failed":
                fault = PassingModelFault(
                    f"{self._endpoint.provider} broke off its reply for `{self._endpoint.model}`: "
                    f"{self._endpoint.quote(str(parts.stop_word))}."
                )
                fault.max_attempts = PAID_ATTEMPTS
            fault.spent = None if usage.estimated else usage
            raise fault
        if reason == "unknown":
            word = self._endpoint.quote(str(parts.stop_word))
            _log.warning("%s ended a reply for an unknown reason: %s", self.name, word)
        return Completion(parts.text, usage, reason, thoughts=parts.thoughts)
