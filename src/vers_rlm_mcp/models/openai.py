"""Every endpoint that speaks OpenAI's chat completions, through the `openai` SDK: streamed.

OpenAI itself, and Ollama, LM Studio, vLLM or llama.cpp behind `OPENAI_BASE_URL`. OpenAI caches
prompts by itself; all we do for it is never to change what was said before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from vers_rlm_mcp.errors import ModelError, ModelFailed, ModelUnavailable
from vers_rlm_mcp.values import Completion, Message, StopReason, Usage

from .remote import TIMEOUT, Endpoint, RemoteModel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import openai
    from openai import AsyncOpenAI

DEFAULT_MODEL = "gpt-6.2-sol"
DEFAULT_URL = "https://api.openai.com/v1"

# The SDK insists on a key; a server of one's own mostly does not look at it.
_NO_KEY = "not-needed"

_STOP_REASONS: Mapping[str, StopReason] = {"length": "length", "content_filter": "refusal"}

# Request fields that older servers refuse, and what they know instead.
_NEWER_FIELDS: Mapping[str, str | None] = {
    "max_completion_tokens": "max_tokens",
    "stream_options": None,
}

# `code` of the 429 that no waiting helps against.
_NO_QUOTA = "insufficient_quota"

# `code` or `type` of errors in the middle of a stream, which have no status of their own.
_STATUS_OF_CODE: Mapping[str | None, int] = {
    "invalid_api_key": 401,
    _NO_QUOTA: 402,
    "model_not_found": 404,
    "context_length_exceeded": 400,
    "invalid_request_error": 400,
    "rate_limit_exceeded": 429,
}

_BYTES_PER_TOKEN = 4
"""A rule of thumb for English and code, used only where a server reports no usage."""


class OpenAIModel(RemoteModel["AsyncOpenAI"]):
    """A model of OpenAI, or of a server that speaks the same protocol."""

    def __init__(self, model: str | None, env: Mapping[str, str]) -> None:
        local = bool(env.get("OPENAI_BASE_URL", "").strip())
        if model is None and local and not env.get("OPENAI_API_KEY", "").strip():
            raise ModelUnavailable(
                "OPENAI_BASE_URL names a server, but not which of its models: "
                "ask for `openai:MODEL`."
            )
        super().__init__(
            Endpoint.from_environment(
                env, "openai", model or DEFAULT_MODEL, DEFAULT_URL, _NO_KEY if local else ""
            )
        )
        self._unknown_fields: frozenset[str] = frozenset()

    def _open(self) -> AsyncOpenAI:
        import openai  # noqa: PLC0415 - takes a second

        return openai.AsyncOpenAI(
            api_key=self._endpoint.key,
            base_url=self._endpoint.url,
            default_headers=self._endpoint.headers,
            max_retries=0,
            timeout=TIMEOUT,
            # Its own one would close itself in a task when collected, half made as it may be.
            http_client=openai.DefaultAsyncHttpxClient(),
        )

    async def _ask(
        self, client: AsyncOpenAI, messages: Sequence[Message], max_tokens: int | None
    ) -> Completion:
        """Ask with the current fields, and again without those that the server refuses by name."""
        import openai  # noqa: PLC0415 - loaded by now

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
        import openai  # noqa: PLC0415 - loaded by now

        reply = _Reply()
        # Without the SDK's models of request and chunks, which cost 1 ms a call: all of a
        # kernel's sub-calls share one event loop.
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
        if reply.finish_reason is None:
            raise self._endpoint.broken("ended its reply before it was complete")
        stop_reason = "refusal" if reply.refused else _STOP_REASONS.get(reply.finish_reason, "end")
        if reply.usage is None:
            return Completion(
                reply.text, _estimate(messages, reply.text), stop_reason, estimated=True
            )
        return Completion(reply.text, self._priced(_usage(reply.usage)), stop_reason)

    def _sdk_error(self) -> type[Exception]:
        import openai  # noqa: PLC0415 - loaded by now

        return openai.OpenAIError

    def _translate(self, error: Exception) -> ModelError:
        import openai  # noqa: PLC0415 - loaded by now

        if isinstance(error, openai.APIConnectionError):
            return self._endpoint.broken("could not be reached", error.__cause__ or error)
        if isinstance(error, openai.APIStatusError):
            status = 402 if error.code == _NO_QUOTA else error.status_code
            return self._endpoint.status_error(status, _words(error), error.response.headers)
        if isinstance(error, openai.APIError):
            return self._endpoint.status_error(_status(error), _words(error), {})
        return ModelFailed(f"The SDK of openai failed: {self._endpoint.quote(str(error))}")


def _status(error: openai.APIError) -> int:
    """The HTTP status that an error without one, or with a misleading one, should have had."""
    for code in (error.code, error.type):
        if code in _STATUS_OF_CODE:
            return _STATUS_OF_CODE[code]
        if code and code.isdecimal() and 400 <= int(code) < 600:
            return int(code)
    return 500


def _words(error: openai.APIError) -> str:
    """What the server said: ``{"error": {"message": …}}``, or ``{"error": …}`` as Ollama has it."""
    body = cast("dict[str, object] | str | None", error.body)
    words = body.get("message") if isinstance(body, dict) else body
    return words if isinstance(words, str) else error.message


def _usage(reported: Mapping[str, Any]) -> Usage:
    """Disjoint counts: a prompt's tokens include those read from and written to the cache."""
    details: Mapping[str, Any] = reported.get("prompt_tokens_details") or {}
    read = details.get("cached_tokens") or 0
    written = details.get("cache_write_tokens") or 0
    rest = max(0, reported["prompt_tokens"] - read - written)
    return Usage(rest, reported["completion_tokens"], read, written)


def _estimate(messages: Sequence[Message], text: str) -> Usage:
    """For a server that reports no usage, which must not look as if nothing had been used."""
    asked = sum(len(message.content.encode()) for message in messages)
    return Usage(_tokens(asked), _tokens(len(text.encode())), usd=None)


def _tokens(size: int) -> int:
    return -(-size // _BYTES_PER_TOKEN)


class _Reply:
    """A reply, as its chunks come in."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self.finish_reason: str | None = None
        self.refused = False
        self.usage: Mapping[str, Any] | None = None

    @property
    def text(self) -> str:
        return "".join(self._parts)

    def take(self, chunk: Mapping[str, Any]) -> None:
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk.get("choices") or ():
            delta: Mapping[str, Any] = choice.get("delta") or {}
            self._parts.append(delta.get("content") or delta.get("refusal") or "")
            self.refused = self.refused or bool(delta.get("refusal"))
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
