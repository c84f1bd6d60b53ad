"""Anthropic's models, through the `anthropic` SDK: streamed, with prompt caching."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from vers_rlm_mcp.errors import ModelError, ModelFailed
from vers_rlm_mcp.replies import BOUNDED
from vers_rlm_mcp.values import Usage

from . import stop_reasons
from .endpoint import Endpoint
from .forms import without_system
from .receiving import Incoming
from .refusals import Refusal, is_refusal, read_body, read_document
from .remote import TIMEOUT, ModelOptions, RemoteModel
from .reply import ReplyParts
from .usage import Reported, read_anthropic_usage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anthropic import AsyncAnthropic

    from vers_rlm_mcp.values import Completion, Message

    from .forms import Form
    from .refusals import Said

Json = dict[str, Any]

DEFAULT_MODEL = "claude-sonnet-5-5"
DEFAULT_URL = "https://api.anthropic.com"

DEFAULT_MAX_TOKENS = 32_000
"""Enough for thinking and a long program. Every current model allows at least twice as much."""

MAX_PAUSES = 10
"""How often a reply is continued that the provider pauses."""

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

    def __init__(
        self,
        model: str,
        env: Mapping[str, str],
        options: ModelOptions = ModelOptions(),  # noqa: B008 - immutable
    ) -> None:
        endpoint = Endpoint.from_environment(
            env, provider="anthropic", model=model, default_url=DEFAULT_URL
        )
        super().__init__(endpoint, options)

    def _open(self) -> AsyncAnthropic:
        import anthropic  # takes over a second

        return anthropic.AsyncAnthropic(
            api_key=self._endpoint.key,
            base_url=self._endpoint.url,
            default_headers=self._endpoint.headers,
            max_retries=0,
            timeout=TIMEOUT,
            # As in OpenAIModel. This client keeps its connections alive itself.
            http_client=anthropic.DefaultAsyncHttpxClient(event_hooks=BOUNDED),
        )

    def _request(
        self, messages: Sequence[Message], max_tokens: int | None, form: Form
    ) -> dict[str, Any]:
        sent = messages if form.has_system else without_system(messages)
        system, turns = _conversation(sent, caches="cache_control" not in form.without)
        fields: dict[str, Any] = {
            "model": self._endpoint.model,
            "max_tokens": form.limit(max_tokens or DEFAULT_MAX_TOKENS),
            **({"system": system} if system else {}),
            "messages": turns,
            "stream": form.streams,
            **self._options.fields,
        }
        return {name: value for name, value in fields.items() if name not in form.without}

    async def _exchange(
        self, client: AsyncAnthropic, messages: Sequence[Message], request: dict[str, Any]
    ) -> Completion:
        """Ask, and let a reply continue that was paused."""
        import anthropic

        reply = _Reply()
        spent = Usage()
        pauses = 0
        while True:
            stream = await client.post(  # see OpenAIModel
                "/v1/messages",
                cast_to=object,
                body=request,
                stream=True,
                stream_cls=anthropic.AsyncStream[object],
            )
            incoming = Incoming(stream.response)
            await self._receive(incoming, reply)
            if reply.parts.stop_reason != "paused" or pauses == MAX_PAUSES:
                completion = self._completion(messages, incoming, reply)
                return replace(completion, usage=spent + completion.usage)
            pauses += 1
            spent += self._price(reply.usage.usage(messages, reply.parts.everything))
            turn = {"role": "assistant", "content": reply.take_blocks()}
            request = {**request, "messages": [*request["messages"], turn]}

    def _sdk_error(self) -> type[Exception]:
        import anthropic

        return anthropic.AnthropicError

    def _translate(self, error: Exception) -> ModelError | Refusal:
        import anthropic

        if isinstance(error, anthropic.APIStatusError):
            said = read_body(error.response.content)
            spent_all = any(code.endswith(_SPEND_LIMIT) for code in said.codes)
            status = 402 if spent_all else error.status_code
            return Refusal(status, said.words, error.response.headers)
        if isinstance(error, anthropic.APIConnectionError):
            return self._endpoint.broken("could not be reached", error.__cause__ or error)
        return ModelFailed(f"The SDK of anthropic failed: {self._endpoint.quote(str(error))}")


def _conversation(messages: Sequence[Message], *, caches: bool) -> tuple[list[Json], list[Json]]:
    """Build the request's system prompt and turns, with breakpoints for the prompt cache.

    A conversation starts with a system message and grows. Its prefix should be written to the cache
    now and found there by the next request, so the last two user messages end in a breakpoint: the
    earlier one is where the previous request ended. Messages without a system prompt are a single
    question; caching them would cost a quarter more, and the cache would never be read.
    """
    instructions = [_block(message) for message in messages if message.role == "system"]
    turns = [(message.role, _block(message)) for message in messages if message.role != "system"]
    if instructions and caches:
        asked = [block for role, block in turns if role == "user"]
        for block in (*instructions, *asked[-2:]):
            block["cache_control"] = {"type": "ephemeral"}
    return instructions, [{"role": role, "content": [block]} for role, block in turns]


def _block(message: Message) -> Json:
    return {"type": "text", "text": message.content if message.content.strip() else _NOTHING}


class _Reply:
    """Collects a reply from its events, or from one document."""

    def __init__(self) -> None:
        self.parts = ReplyParts(stop_reasons.ANTHROPIC)
        self.has_begun = False
        self._usage: Json = {}
        self._blocks: dict[object, Json] = {}

    @property
    def usage(self) -> Reported:
        return read_anthropic_usage(self._usage)

    def take(self, document: Mapping[str, Any]) -> None:
        match document.get("type"):
            case "message_start":
                self._take_message(document["message"])
                self._usage.pop("output_tokens", None)  # of a reply that has just begun
            case "message":
                self._take_message(document)
            case "content_block_start":
                self._begin_block(document["index"], document["content_block"])
            case "content_block_delta":
                self._extend_block(document["index"], document["delta"])
            case "message_delta":
                self.parts.stop_word = document["delta"].get("stop_reason")
                self._count(document.get("usage"))
            case _:
                if is_refusal(document):
                    said = read_document(document)
                    raise Refusal(_status(said), said.words)

    def take_blocks(self) -> list[Json]:
        """The blocks received so far, to be sent back; the next ones are of another message."""
        blocks, self._blocks, self._usage = list(self._blocks.values()), {}, {}
        return blocks

    def _take_message(self, message: Mapping[str, Any]) -> None:
        self.has_begun = True
        self.parts.stop_word = message.get("stop_reason")
        self._count(message.get("usage"))
        for index, block in enumerate(message.get("content") or ()):
            self._begin_block(index, block)

    def _begin_block(self, index: object, block: Mapping[str, Any]) -> None:
        self._blocks[index] = dict(block)
        match block.get("type"):
            case "text":
                self.parts.begin_block()
                self.parts.add_text(block.get("text"))
            case "thinking":
                self.parts.add_thoughts(block.get("thinking"))
            case "tool_use":
                arguments = json.dumps(block["input"]) if block.get("input") else ""
                self.parts.add_tool_call(index, block.get("name"), arguments)
            case _:
                pass  # nothing that can be shown

    def _extend_block(self, index: object, delta: Mapping[str, Any]) -> None:
        match delta.get("type"):
            case "text_delta":
                self.parts.add_text(self._extend(index, "text", delta))
            case "thinking_delta":
                self.parts.add_thoughts(self._extend(index, "thinking", delta))
            case "signature_delta":
                self._extend(index, "signature", delta)
            case "input_json_delta":
                self.parts.add_tool_call(index, "", delta.get("partial_json"))
            case _:
                pass  # of a later version

    def _extend(self, index: object, name: str, delta: Mapping[str, Any]) -> str:
        """Extend a field of a block, and return what was added."""
        block = self._blocks.setdefault(index, {"type": name})
        added = str(delta.get(name) or "")
        block[name] = str(block.get(name) or "") + added
        return added

    def _count(self, usage: object) -> None:
        """Keep cumulative counts; one that a later event omits is unchanged."""
        if isinstance(usage, dict):
            counts = cast("Json", usage)
            self._usage |= {name: count for name, count in counts.items() if count is not None}


def _status(said: Said) -> int:
    """The HTTP status that an error in a stream implies."""
    return next((_STATUS_OF_TYPE[code] for code in said.codes if code in _STATUS_OF_TYPE), 500)
