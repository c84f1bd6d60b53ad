"""Anthropic's models, through the `anthropic` SDK: streamed, with prompt caching."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from vers_rlm_mcp.errors import ModelError, ModelFailed
from vers_rlm_mcp.values import Message, Usage

from . import stop_reasons
from .remote import TIMEOUT, Endpoint, RemoteModel
from .reply import ReplyParts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import anthropic
    from anthropic import AsyncAnthropic
    from anthropic.types import (
        ContentBlock,
        MessageDeltaUsage,
        MessageParam,
        RawContentBlockDelta,
        RawMessageStreamEvent,
        TextBlockParam,
        Usage as AnthropicUsage,
    )

    from vers_rlm_mcp.values import Completion

DEFAULT_MODEL = "claude-sonnet-5-5"
DEFAULT_URL = "https://api.anthropic.com"

DEFAULT_MAX_TOKENS = 32_000
"""Enough for thinking and a long program. Every current model allows at least twice as much."""

# Replaces text without a visible character, which the API rejects but models do reply with.
_NOTHING = "(nothing)"

# An error in mid-stream has status 200; its type implies the status that it would otherwise have.
_STATUS_OF_TYPE: Mapping[str | None, int] = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "rate_limit_error": 429,
    "timeout_error": 504,
    "overloaded_error": 529,
}

# `error_code` of a 429 that waiting does not resolve.
_SPEND_LIMIT = "spend_limit_reached"


class AnthropicModel(RemoteModel["AsyncAnthropic"]):
    """A model of Anthropic, or of a server with the same API."""

    def __init__(self, model: str, env: Mapping[str, str]) -> None:
        endpoint = Endpoint.from_environment(
            env, provider="anthropic", model=model, default_url=DEFAULT_URL
        )
        super().__init__(endpoint)

    def _open(self) -> AsyncAnthropic:
        import anthropic  # takes over a second

        client = anthropic.AsyncAnthropic(
            api_key=self._endpoint.key,
            base_url=self._endpoint.url,
            default_headers=self._endpoint.headers,
            max_retries=0,
            timeout=TIMEOUT,
            http_client=anthropic.DefaultAsyncHttpxClient(),  # as in OpenAIModel
        )
        _ = client.messages  # imports the rest of the SDK
        return client

    async def _ask(
        self, client: AsyncAnthropic, messages: Sequence[Message], max_tokens: int | None
    ) -> Completion:
        import anthropic

        system, turns = _conversation(messages)
        reply = _Reply()
        stream = await client.messages.create(
            model=self._endpoint.model,
            max_tokens=max_tokens or DEFAULT_MAX_TOKENS,
            system=system or anthropic.omit,
            messages=turns,
            stream=True,
        )
        async with stream:
            async for event in stream:
                reply.take(event)
        return self._completion(reply.parts, self._add_price(reply.usage))

    def _sdk_error(self) -> type[Exception]:
        import anthropic

        return anthropic.AnthropicError

    def _translate(self, error: Exception) -> ModelError:
        import anthropic

        if isinstance(error, anthropic.APIStatusError):
            words = error.api_message or error.message
            return self._endpoint.status_error(_status(error), words, error.response.headers)
        if isinstance(error, anthropic.APIConnectionError):
            return self._endpoint.broken("could not be reached", error.__cause__ or error)
        return ModelFailed(f"The SDK of anthropic failed: {self._endpoint.quote(str(error))}")


def _status(error: anthropic.APIStatusError) -> int:
    """The status that describes the error, which is not always the response's own."""
    if (error.error_code or "").endswith(_SPEND_LIMIT):
        return 402
    if error.status_code < 400:
        return _STATUS_OF_TYPE.get(error.type, 500)
    return error.status_code


def _conversation(messages: Sequence[Message]) -> tuple[list[TextBlockParam], list[MessageParam]]:
    """Build the request's system prompt and turns, with breakpoints for the prompt cache.

    A conversation starts with a system message and grows. Its prefix should be written to the cache
    now and found there by the next request, so the last two user messages end in a breakpoint: the
    earlier one is where the previous request ended. Messages without a system prompt are a single
    question; caching them would cost a quarter more, and the cache would never be read.
    """
    instructions = [_block(message) for message in messages if message.role == "system"]
    turns = [(message.role, _block(message)) for message in messages if message.role != "system"]
    if instructions:
        asked = [block for role, block in turns if role == "user"]
        for block in (*instructions, *asked[-2:]):
            block["cache_control"] = {"type": "ephemeral"}
    content = [{"role": role, "content": [block]} for role, block in turns]
    return instructions, cast("list[MessageParam]", content)


def _block(message: Message) -> TextBlockParam:
    return {"type": "text", "text": message.content if message.content.strip() else _NOTHING}


class _Reply:
    """Collects a reply from its events."""

    def __init__(self) -> None:
        self.parts = ReplyParts(stop_reasons.ANTHROPIC)
        self.usage = Usage()

    def take(self, event: RawMessageStreamEvent) -> None:
        if event.type == "message_start":
            self._count(event.message.usage)
        elif event.type == "content_block_start":
            self._begin_block(event.index, event.content_block)
        elif event.type == "content_block_delta":
            self._extend_block(event.index, event.delta)
        elif event.type == "message_delta":
            self.parts.stop_word = event.delta.stop_reason
            self._count(event.usage)

    def _begin_block(self, index: int, block: ContentBlock) -> None:
        if block.type == "text":
            self.parts.begin_block()
            self.parts.add_text(block.text)
        elif block.type == "thinking":
            self.parts.add_thoughts(block.thinking)
        elif block.type == "tool_use":
            self.parts.add_tool_call(index, block.name, "")

    def _extend_block(self, index: int, delta: RawContentBlockDelta) -> None:
        if delta.type == "text_delta":
            self.parts.add_text(delta.text)
        elif delta.type == "thinking_delta":
            self.parts.add_thoughts(delta.thinking)
        elif delta.type == "input_json_delta":
            self.parts.add_tool_call(index, "", delta.partial_json)

    def _count(self, usage: AnthropicUsage | MessageDeltaUsage) -> None:
        """Store cumulative counts; a count that a later event omits is unchanged."""
        known = self.usage
        self.usage = Usage(
            _latest(usage.input_tokens, known.input_tokens),
            _latest(usage.output_tokens, known.output_tokens),
            _latest(usage.cache_read_input_tokens, known.cache_read_tokens),
            _latest(usage.cache_creation_input_tokens, known.cache_write_tokens),
        )


def _latest(reported: int | None, known: int) -> int:
    return known if reported is None else reported
