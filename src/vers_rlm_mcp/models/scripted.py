"""A model that replies from a script: for tests, demonstrations and benchmarks.

A script is a text file. A line that begins with ``--- reply`` starts a reply, which extends to the
next such line; text before the first one is ignored. Fields may follow ``--- reply``, quoted as in
a shell if they contain spaces::

    --- reply seconds=0.2 input_tokens=900 output_tokens=40
    First I look at the data.
    --- reply
    …
    --- reply when="^Summarise"
    A summary, for every conversation whose last message begins with "Summarise".

The first reply whose `when`, a regular expression, matches in the last message is used. If there is
none, the replies without `when` are used in order: a conversation that contains n replies gets
number n + 1. The reply thus depends on the conversation alone, so any number of runs can share a
script.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import anyio

from vers_rlm_mcp.errors import ModelFailed, ModelUnavailable
from vers_rlm_mcp.values import Completion, Message, StopReason, Usage

from .base import Model
from .prices import FREE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_HEADER = re.compile(r"^--- reply\b(.*)$", re.MULTILINE)
_TOKENS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
_FIELDS = ("when", "seconds", "stop", "usd", *_TOKENS)


@dataclass(frozen=True, slots=True)
class _Reply:
    completion: Completion
    when: re.Pattern[str] | None
    seconds: float


class ScriptedModel(Model):
    """Replies from a script. By default, a reply takes no time and costs nothing."""

    price = FREE

    def __init__(self, path: Path) -> None:
        """Read the script. Raises `ModelUnavailable` if it cannot be read or parsed."""
        self.name = f"scripted:{path}"
        replies = _parse(_read(path), path)
        self._conditional = [reply for reply in replies if reply.when]
        self._sequence = [reply for reply in replies if not reply.when]

    async def complete(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int | None = None,  # noqa: ARG002 - a script's replies are never cut
    ) -> Completion:
        """Return the script's reply to this conversation. Raises `ModelFailed` if there is none."""
        reply = self._find(messages)
        await anyio.sleep(reply.seconds)
        return reply.completion

    async def aclose(self) -> None:
        """Do nothing; there is nothing to close."""

    def _find(self, messages: Sequence[Message]) -> _Reply:
        last = messages[-1].content if messages else ""
        for reply in self._conditional:
            if reply.when and reply.when.search(last):
                return reply
        number = sum(message.role == "assistant" for message in messages)
        if number < len(self._sequence):
            return self._sequence[number]
        raise ModelFailed(
            f"The script of {self.name} has {len(self._sequence)} replies, and no reply "
            f"{number + 1} to a message that begins {last[:80]!r}. Add a reply, or one with a "
            "matching `when`."
        )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f"The script {path} cannot be read: {error}") from error


def _parse(script: str, path: Path) -> list[_Reply]:
    headers = list(_HEADER.finditer(script))
    if not headers:
        raise ModelUnavailable(
            f"The script {path} has no replies: begin each with a line `--- reply`."
        )
    ends = [*(header.start() for header in headers[1:]), len(script)]
    replies: list[_Reply] = []
    for header, end in zip(headers, ends, strict=True):
        text = script[header.end() : end].strip("\n")
        try:
            replies.append(_reply(text, _fields(header[1])))
        except (ValueError, re.error) as error:
            line = script.count("\n", 0, header.start()) + 1
            raise ModelUnavailable(f"Line {line} of the script {path}: {error}") from error
    return replies


def _fields(text: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for word in shlex.split(text):
        name, equals, value = word.partition("=")
        if not equals or name not in _FIELDS:
            raise ValueError(f"{word!r} is none of the fields {'=, '.join(_FIELDS)}=")
        fields[name] = value
    return fields


def _reply(text: str, fields: Mapping[str, str]) -> _Reply:
    tokens = (int(fields.get(name, "0")) for name in _TOKENS)
    usage = Usage(*tokens, usd=float(fields.get("usd", "0")))
    when = re.compile(fields["when"]) if "when" in fields else None
    completion = Completion(text, usage, _stop_reason(fields.get("stop", "end")))
    return _Reply(completion, when, float(fields.get("seconds", "0")))


def _stop_reason(word: str) -> StopReason:
    for reason in get_args(StopReason):
        if word == reason:
            return reason
    raise ValueError(f"stop={word} is none of {', '.join(get_args(StopReason))}")
