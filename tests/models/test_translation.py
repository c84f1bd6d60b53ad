"""Nothing of a provider's SDK, or of the HTTP library below it, gets out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

import anthropic
import httpx2
import openai
import pytest

from vers_rlm_mcp.errors import ModelError, ModelUnavailable
from vers_rlm_mcp.models.anthropic import AnthropicModel
from vers_rlm_mcp.models.openai import OpenAIModel

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vers_rlm_mcp.values import Completion, Message

KEY = "sk-1234567890"
REQUEST = httpx2.Request("POST", "http://127.0.0.1/", headers={"authorization": KEY})


class RaisingAnthropic(AnthropicModel):
    """Meets an error of the SDK at each attempt."""

    error: Exception

    async def attempt(self, error: Exception) -> None:
        self.error = error
        await self._attempt(cast("anthropic.AsyncAnthropic", None), [], None)

    async def _ask(
        self, client: object, messages: Sequence[Message], max_tokens: int | None
    ) -> Completion:
        raise self.error


class RaisingOpenAI(OpenAIModel):
    """Meets an error of the SDK at each attempt."""

    error: Exception

    async def attempt(self, error: Exception) -> None:
        self.error = error
        await self._attempt(cast("openai.AsyncOpenAI", None), [], None)

    async def _ask(
        self, client: object, messages: Sequence[Message], max_tokens: int | None
    ) -> Completion:
        raise self.error


def family(root: type[Exception]) -> Iterator[type[Exception]]:
    """A class of errors and all that derive from it."""
    yield root
    for child in root.__subclasses__():
        yield from family(child)


def make(kind: type[Exception]) -> Exception:
    """An instance with what the SDKs' constructors set, which all differ."""
    error = kind.__new__(kind, f"said {KEY}")
    status = getattr(kind, "status_code", None)
    filled: dict[str, Any] = {
        "message": f"said {KEY}",
        "request": REQUEST,
        "response": httpx2.Response(status or 500, request=REQUEST),
        "status_code": status or 500,
        "body": {"message": f"said {KEY}"},
        "api_message": None,
        "error_code": None,
        "request_id": None,
        "type": None,
        "code": None,
    }
    for name, value in filled.items():
        if not isinstance(getattr(kind, name, None), property):
            setattr(error, name, value)
    return error


TRANSPORT = [
    kind
    for root in (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL, httpx2.CookieConflict)
    for kind in family(root)
]
READING: list[Exception] = [
    json.JSONDecodeError("bad", KEY, 0),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    AttributeError("'NoneType' object has no attribute 'usage'"),
    TypeError("'NoneType' object is not iterable"),
]


@pytest.mark.parametrize("kind", sorted(set(family(anthropic.AnthropicError)), key=str))
async def test_every_error_of_the_anthropic_sdk_is_translated(kind: type[Exception]):
    await assert_translated(RaisingAnthropic("m", {"ANTHROPIC_API_KEY": KEY}), make(kind))


@pytest.mark.parametrize("kind", sorted(set(family(openai.OpenAIError)), key=str))
async def test_every_error_of_the_openai_sdk_is_translated(kind: type[Exception]):
    await assert_translated(RaisingOpenAI("m", {"OPENAI_API_KEY": KEY}), make(kind))


@pytest.mark.parametrize("error", [*map(make, TRANSPORT), *READING], ids=lambda e: type(e).__name__)
async def test_every_error_below_the_sdks_is_translated(error: Exception):
    await assert_translated(RaisingAnthropic("m", {"ANTHROPIC_API_KEY": KEY}), error)
    await assert_translated(RaisingOpenAI("m", {"OPENAI_API_KEY": KEY}), error)


async def assert_translated(model: RaisingAnthropic | RaisingOpenAI, error: Exception) -> None:
    with pytest.raises(ModelError) as caught:
        await model.attempt(error)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert KEY not in str(caught.value)
    if getattr(error, "status_code", None) in {401, 403, 404}:
        assert isinstance(caught.value, ModelUnavailable)


def test_the_families_are_complete():
    """Every public error of the SDKs belongs to a family above, webhooks' apart."""
    for sdk, root in ((anthropic, anthropic.AnthropicError), (openai, openai.OpenAIError)):
        public = {
            kind
            for kind in list(vars(sdk).values())
            if isinstance(kind, type) and issubclass(kind, Exception)
        }
        assert len(public) > 10
        assert not [kind for kind in public if not issubclass(kind, (root, ValueError))]
