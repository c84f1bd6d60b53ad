"""OpenAI's models, and every endpoint with OpenAI's chat completions API: streamed.

Ollama, LM Studio, vLLM and llama.cpp are reached through `OPENAI_BASE_URL`. OpenAI caches prompts
automatically, provided that earlier messages never change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from vers_rlm_mcp.errors import ModelError, ModelFailed, ModelUnavailable
from vers_rlm_mcp.values import Message, Usage

from . import stop_reasons
from .remote import TIMEOUT, Endpoint, RemoteModel
from .reply import ReplyParts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import openai
    from openai import AsyncOpenAI

    from vers_rlm_mcp.values import Completion

DEFAULT_MODEL = "gpt-6.2-sol"
DEFAULT_URL = "https://api.openai.com/v1"

# The SDK requires a key, which most self-hosted servers ignore.
_NO_KEY = "not-needed"

# Request fields that older servers reject, and the older field to use instead, if any.
_NEWER_FIELDS: Mapping[str, str | None] = {
    "max_completion_tokens": "max_tokens",
    "stream_options": None,
}

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

_BYTES_PER_TOKEN = 4
"""A rule of thumb for English and code, used only if a server reports no usage."""


class OpenAIModel(RemoteModel["AsyncOpenAI"]):
    """A model of OpenAI, or of a server with the same API."""

    def __init__(self, model: str | None, env: Mapping[str, str]) -> None:
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
        super().__init__(endpoint)
        self._unknown_fields: frozenset[str] = frozenset()

    def _open(self) -> AsyncOpenAI:
        import openai  # takes a second

        return openai.AsyncOpenAI(
            api_key=self._endpoint.key,
            base_url=self._endpoint.url,
            default_headers=self._endpoint.headers,
            max_retries=0,
            timeout=TIMEOUT,
            # The SDK's own client closes itself in a task when garbage-collected.
            http_client=openai.DefaultAsyncHttpxClient(),
        )

    async def _ask(
        self, client: AsyncOpenAI, messages: Sequence[Message], max_tokens: int | None
    ) -> Completion:
        """Send the current fields, and retry without those that the server rejects by name."""
        import openai

        unknown = self._unknown_fields
        while True:
            request = self._request(messages, max_tokens, unknown)
            try:
                completion = await self._stream(client, messages, request)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                refused = {
                    field for field in _NEWER_FIELDS if field in request and field in str(error)
                }
                if not refused:
                    raise
                unknown |= refused
            else:
                self._unknown_fields = unknown
                return completion

    def _request(
        self, messages: Sequence[Message], max_tokens: int | None, unknown: frozenset[str]
    ) -> dict[str, Any]:
        fields: dict[str, Any] = {"stream_options": {"include_usage": True}}
        if max_tokens is not None:
            fields["max_completion_tokens"] = max_tokens
        for field in unknown & fields.keys():
            value, older = fields.pop(field), _NEWER_FIELDS[field]
            if older is not None:
                fields[older] = value
        return {
            "messages": [
                {"role": message.role, "content": message.content} for message in messages
            ],
            "model": self._endpoint.model,
            "stream": True,
            **fields,
        }

    async def _stream(
        self, client: AsyncOpenAI, messages: Sequence[Message], request: dict[str, Any]
    ) -> Completion:
        import openai

        reply = _Reply()
        # Bypasses the SDK's request and chunk models, which take 1 ms per call: all sub-calls of a
        # kernel share one event loop.
        stream: openai.AsyncStream[object] = await client.post(
            "/chat/completions",
            cast_to=object,
            body=request,
            stream=True,
            stream_cls=openai.AsyncStream[object],
        )
        async with stream:
            async for chunk in stream:
                reply.take(cast("dict[str, Any]", chunk))
        if reply.usage is None:
            usage = _estimate(messages, reply.parts)
            return self._completion(reply.parts, usage, estimated=True)
        return self._completion(reply.parts, self._add_price(_usage(reply.usage)))

    def _sdk_error(self) -> type[Exception]:
        import openai

        return openai.OpenAIError

    def _translate(self, error: Exception) -> ModelError:
        import openai

        if isinstance(error, openai.APIConnectionError):
            return self._endpoint.broken("could not be reached", error.__cause__ or error)
        if isinstance(error, openai.APIStatusError):
            status = 402 if error.code == _NO_QUOTA else error.status_code
            return self._endpoint.status_error(status, _words(error), error.response.headers)
        if isinstance(error, openai.APIError):
            return self._endpoint.status_error(_status(error), _words(error), {})
        return ModelFailed(f"The SDK of openai failed: {self._endpoint.quote(str(error))}")


def _status(error: openai.APIError) -> int:
    """The HTTP status that describes an error without one, or with a misleading one."""
    for code in (error.code, error.type):
        if code in _STATUS_OF_CODE:
            return _STATUS_OF_CODE[code]
        if code and code.isdecimal() and 400 <= int(code) < 600:
            return int(code)
    return 500


def _words(error: openai.APIError) -> str:
    """The server's message: ``{"error": {"message": …}}``, or ``{"error": …}`` from Ollama."""
    body = cast("dict[str, object] | str | None", error.body)
    words = body.get("message") if isinstance(body, dict) else body
    return words if isinstance(words, str) else error.message


def _usage(reported: Mapping[str, Any]) -> Usage:
    """Make the counts disjoint: `prompt_tokens` includes cache reads and writes."""
    details: Mapping[str, Any] = reported.get("prompt_tokens_details") or {}
    read = details.get("cached_tokens") or 0
    written = details.get("cache_write_tokens") or 0
    rest = max(0, reported["prompt_tokens"] - read - written)
    return Usage(rest, reported["completion_tokens"], read, written)


def _estimate(messages: Sequence[Message], parts: ReplyParts) -> Usage:
    """Estimate usage for a server that reports none, since it must not appear to be zero."""
    asked = sum(len(message.content.encode()) for message in messages)
    replied = len(parts.text.encode()) + len(parts.thoughts.encode())
    return Usage(_tokens(asked), _tokens(replied), usd=None)


def _tokens(size: int) -> int:
    return -(-size // _BYTES_PER_TOKEN)


_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Fields of a message for thoughts: DeepSeek, vLLM and llama.cpp; OpenRouter, Groq and Ollama; some
gateways. Servers that fill several fill them with the same text."""


class _Reply:
    """Collects a reply from its chunks."""

    def __init__(self) -> None:
        self.parts = ReplyParts(stop_reasons.OPENAI)
        self.usage: Mapping[str, Any] | None = None

    def take(self, chunk: Mapping[str, Any]) -> None:
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk.get("choices") or ():
            self._take_message(choice.get("delta") or {})
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
