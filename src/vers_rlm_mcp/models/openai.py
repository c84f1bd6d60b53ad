"""OpenAI's models, and every endpoint with OpenAI's chat completions API: streamed.

Ollama, LM Studio, vLLM and llama.cpp are reached through `OPENAI_BASE_URL`. OpenAI caches prompts
automatically, provided that earlier messages never change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.request import getproxies

import httpx2

from vers_rlm_mcp.errors import ModelError, ModelFailed, ModelUnavailable
from vers_rlm_mcp.replies import BOUNDED

from . import stop_reasons
from .endpoint import Endpoint
from .forms import LIMITS, without_system
from .receiving import Incoming
from .refusals import Refusal, is_refusal, read_body, read_document
from .remote import CONNECTIONS, KEEP_ALIVE, TIMEOUT, ModelOptions, RemoteModel
from .reply import ReplyParts
from .usage import Reported, read_openai_usage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from openai import AsyncOpenAI

    from vers_rlm_mcp.values import Completion, Message

    from .forms import Form
    from .refusals import Said

DEFAULT_MODEL = "gpt-6.2-sol"
DEFAULT_URL = "https://api.openai.com/v1"

# The SDK requires a key, which most self-hosted servers ignore.
_NO_KEY = "not-needed"

# `code` of a 429 that waiting does not resolve.
_NO_QUOTA = "insufficient_quota"

# The status implied by the `code` or `type` of an error in mid-stream, which has no status.
_STATUS_OF_CODE: Mapping[str | None, int] = {
    "invalid_api_key": 401,
    _NO_QUOTA: 402,
    "model_not_found": 404,
    "context_length_exceeded": 400,
    "invalid_request_error": 400,
    "rate_limit_exceeded": 429,
}


class OpenAIModel(RemoteModel["AsyncOpenAI"]):
    """A model of OpenAI, or of a server with the same API."""

    def __init__(
        self,
        model: str | None,
        env: Mapping[str, str],
        options: ModelOptions = ModelOptions(),  # noqa: B008 - immutable
    ) -> None:
        local = bool(env.get("OPENAI_BASE_URL", "").strip())
        if model is None and local and not env.get("OPENAI_API_KEY", "").strip():
            raise ModelUnavailable(
                "OPENAI_BASE_URL is set, but not which of the server's models to use: "
                "ask for `openai:MODEL`."
            )
        endpoint = Endpoint.from_environment(
            env,
            provider="openai",
            model=model or DEFAULT_MODEL,
            default_url=DEFAULT_URL,
            default_key=_NO_KEY if local else "",
        )
        super().__init__(endpoint, options)

    def _open(self) -> AsyncOpenAI:
        import openai  # takes a second

        # A client with a transport of its own would not use the environment's proxies.
        transport = None
        if not getproxies():
            transport = httpx2.AsyncHTTPTransport(limits=CONNECTIONS, socket_options=KEEP_ALIVE)
        return openai.AsyncOpenAI(
            api_key=self._endpoint.key,
            base_url=self._endpoint.url,
            default_headers=self._endpoint.headers,
            max_retries=0,
            timeout=TIMEOUT,
            # The SDK's own client closes itself in a task when garbage-collected.
            http_client=openai.DefaultAsyncHttpxClient(event_hooks=BOUNDED, transport=transport),
        )

    def _request(
        self, messages: Sequence[Message], max_tokens: int | None, form: Form
    ) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "messages": [
                {"role": message.role, "content": message.content}
                for message in (messages if form.has_system else without_system(messages))
            ],
            "model": self._endpoint.model,
            "stream": form.streams,
            **({"stream_options": {"include_usage": True}} if form.streams else {}),
            **self._options.fields,
        }
        if max_tokens is not None:
            # Other servers may pass over a name that they do not know.
            names = LIMITS[:1] if self._endpoint.url == DEFAULT_URL else LIMITS
            fields |= dict.fromkeys(names, form.limit(max_tokens))
        return {name: value for name, value in fields.items() if name not in form.without}

    async def _exchange(
        self, client: AsyncOpenAI, messages: Sequence[Message], request: dict[str, Any]
    ) -> Completion:
        import openai

        reply = _Reply()
        # The SDK's own reading of replies is not used: it takes a millisecond per call, and expects
        # exactly what was asked for.
        stream = await client.post(
            "/chat/completions",
            cast_to=object,
            body=request,
            stream=True,
            stream_cls=openai.AsyncStream[object],
        )
        incoming = Incoming(stream.response)
        await self._receive(incoming, reply)
        return self._completion(messages, incoming, reply)

    def _sdk_error(self) -> type[Exception]:
        import openai

        return openai.OpenAIError

    def _translate(self, error: Exception) -> ModelError | Refusal:
        import openai

        if isinstance(error, openai.APIConnectionError):
            return self._endpoint.broken("could not be reached", error.__cause__ or error)
        if isinstance(error, openai.APIStatusError):
            said = read_body(error.response.content)
            status = 402 if _NO_QUOTA in said.codes else error.status_code
            return Refusal(status, said.words, error.response.headers)
        return ModelFailed(f"The SDK of openai failed: {self._endpoint.quote(str(error))}")


_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Fields of a message for thoughts: DeepSeek, vLLM and llama.cpp; OpenRouter, Groq and Ollama; some
gateways. Servers that fill several fill them with the same text."""


class _Reply:
    """Collects a reply from its chunks, or from one document."""

    def __init__(self) -> None:
        self.parts = ReplyParts(stop_reasons.OPENAI)
        self.has_begun = False
        self._usage: object = None

    @property
    def usage(self) -> Reported:
        return read_openai_usage(self._usage)

    def take(self, document: Mapping[str, Any]) -> None:
        choices = document.get("choices")
        if document.get("error") or (not choices and is_refusal(document)):
            said = read_document(document)
            raise Refusal(_status(said), said.words)
        self._usage = document.get("usage") or self._usage
        for choice in choices or ():
            self.has_begun = True
            self._take_message(choice.get("delta") or choice.get("message") or {})
            self.parts.stop_word = choice.get("finish_reason") or self.parts.stop_word

    def _take_message(self, message: Mapping[str, Any]) -> None:
        parts = self.parts
        parts.add_text(message.get("content") or message.get("refusal"))
        parts.refused = parts.refused or bool(message.get("refusal"))
        parts.add_thoughts(next(filter(None, map(message.get, _THOUGHTS)), None))
        for number, call in enumerate(message.get("tool_calls") or ()):
            function: Mapping[str, Any] = call.get("function") or {}
            key = call.get("index", number)
            parts.add_tool_call(key, function.get("name"), function.get("arguments"))
        if legacy := message.get("function_call"):
            parts.add_tool_call("function_call", legacy.get("name"), legacy.get("arguments"))


def _status(said: Said) -> int:
    """The HTTP status that describes an error without one."""
    numbers = [int(code) for code in said.codes if code.isdecimal() and 400 <= int(code) < 600]
    named = [_STATUS_OF_CODE[code] for code in said.codes if code in _STATUS_OF_CODE]
    # A code says more than a type, of which most errors have the same.
    return next(iter([*sorted(named, reverse=True), *numbers]), 500)
