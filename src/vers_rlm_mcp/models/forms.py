"""The forms in which a request can be made, and which one to try after a refusal.

Servers with OpenAI's or Anthropic's API differ in what they know. What a server refuses is left out
or said otherwise; the form that worked is remembered for each endpoint.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vers_rlm_mcp.values import Message

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence, Set as AbstractSet

    from .refusals import Refusal

MAX_FORMS = 8
"""Forms that are tried for one call."""

LIMITS = ("max_completion_tokens", "max_tokens")
"""Names of the limit of a reply: OpenAI's current one, and the one that all others know."""

MIN_LIMIT = 1024
"""Tokens below which a limit that was refused for its size is not lowered any further."""


@dataclass(frozen=True, slots=True)
class Form:
    """How to make a request."""

    streams: bool = True
    has_system: bool = True
    """Whether instructions are a system message, or the beginning of the first question."""
    without: frozenset[str] = frozenset()
    """Fields that the server does not take."""
    max_tokens: int | None = None
    """The longest reply that the server lets one ask for."""

    def limit(self, wanted: int) -> int:
        """The limit to send for a wanted one."""
        return wanted if self.max_tokens is None else min(wanted, self.max_tokens)


_NOT_TAKEN = (
    r"not? (?:be )?(?:support|allow|permit|avail|enabl|accept|implement)|n't support|unsupport"
    r"|unrecogni[sz]ed|unknown|unexpected|extra (?:input|field|param)|disabled|deprecated"
    r"|disallow|invalid (?:field|param|argument|key)|only the default|forbidden"
)
_IS_NOT_TAKEN = re.compile(_NOT_TAKEN)
_ANY_FIELD = re.compile(_NOT_TAKEN + r"|bad request|validation|invalid request|invalid input|^$")
_TOO_MUCH = re.compile(
    r"too (?:large|big|high|many|long)|less than|at most|maximum|exceed|range|<=|>|greater|larger"
)
_CONTEXT = re.compile(r"context|prompt|input|too long")
_OTHER_LIMIT = re.compile(r"max_(?:new|output)_tokens|maxoutputtokens|in the completion")
_STREAM = re.compile(r"\bstream(?:ing|ed)?\b")
_STREAM_REFUSED = re.compile(_NOT_TAKEN + r"|verif|must be false|without stream|non-stream")
_SYSTEM = re.compile(
    r"\b(?:system|developer)\b[^.]{0,40}(?:role|message|instruction|prompt)"
    r"|role[^.]{0,80}\b(?:system|developer)\b|roles? must alternate|only user and assistant"
    r"|'user' or 'assistant'|messages?\W{0,3}0\W{0,3}role|^(?:body\.)?system\b"
)
_QUOTED_LIMIT = re.compile(r"['\"`](max_\w+)['\"`]")


def next_form(form: Form, request: Mapping[str, object], refusal: Refusal) -> Form | None:
    """The form in which to repeat a request that was refused; None if none can help.

    Args:
        form: The form in which it was made.
        request: The request's fields.
        refusal: What the provider answered.
    """
    words = refusal.words.lower()
    fields = request.keys() - {"model", "messages", "system", "stream"}
    limits = [name for name in LIMITS if name in fields and name in words]
    asked = next((int(str(request[name])) for name in LIMITS if name in fields), None)
    is_size = _TOO_MUCH.search(words) and not _IS_NOT_TAKEN.search(words)
    if asked and is_size and (limits or _OTHER_LIMIT.search(words)):
        lower = _lower_limit(words, asked)
        return None if lower is None else replace(form, max_tokens=lower)
    if refused := _refused_fields(words, fields, limits):
        return replace(form, without=form.without | refused)
    if form.has_system and _SYSTEM.search(words):
        return replace(form, has_system=False)
    if form.streams and _STREAM.search(words) and _STREAM_REFUSED.search(words):
        return replace(form, streams=False)
    return _unnamed(form, fields, refusal.status, words)


def _refused_fields(words: str, fields: AbstractSet[str], limits: list[str]) -> frozenset[str]:
    """The fields that the words say the server does not take."""
    if len(limits) > 1:
        # OpenAI: Unsupported parameter: 'max_tokens' … Use 'max_completion_tokens' instead.
        quoted = [name for name in _QUOTED_LIMIT.findall(words) if name in limits]
        return frozenset(quoted[:1] or limits[:1])
    if limits:
        return frozenset(limits)
    ours = {"stream_options", "cache_control"}
    named = {name for name in fields | ours if re.search(rf"\b{re.escape(name)}\b", words)}
    return frozenset(named if _IS_NOT_TAKEN.search(words) else named & ours)


def _lower_limit(words: str, asked: int) -> int | None:
    """A limit below the refused one, from the numbers in the words, or half of it."""
    named = {int(number) for number in re.findall(r"\d{2,9}", words.replace(",", ""))}
    if is_about_context(words):
        # Without the limit itself, and the sum of it and the prompt.
        sizes = sorted(size for size in named - {asked} if size - asked not in named)
        lower = sizes[-1] - sum(sizes[-2:-1]) if sizes else 0
    else:
        lower = max((size for size in named if size < asked), default=0)
    if 0 < lower < asked:
        return lower
    return asked // 2 if asked // 2 >= MIN_LIMIT else None


def _unnamed(form: Form, fields: AbstractSet[str], status: int, words: str) -> Form | None:
    """The next form after a refusal that does not say of what, from newest field to oldest."""
    if status not in {400, 422} or not _ANY_FIELD.search(words) or _CONTEXT.search(words):
        return None
    if "stream_options" in fields:
        return replace(form, without=form.without | {"stream_options"})
    if form.has_system:
        return replace(form, has_system=False)
    return replace(form, streams=False) if form.streams else None


def is_about_context(words: str) -> bool:
    """Whether a limit was refused for the size of this request, which others do not share."""
    return bool(_CONTEXT.search(words.lower()))


def without_system(messages: Sequence[Message]) -> Sequence[Message]:
    """The same conversation, with the instructions at the beginning of the first question."""
    instructions = [message.content for message in messages if message.role == "system"]
    rest = [message for message in messages if message.role != "system"]
    if not instructions or not rest:
        return rest or messages
    first = "\n\n".join([*instructions, rest[0].content])
    return [Message("user", first), *rest[1:]]
