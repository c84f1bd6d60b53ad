"""The transcript: the model's replies, and the messages to it.

Messages are only ever appended, so that every request begins with the previous one byte for byte
and the provider's prompt cache is hit.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from vers_rlm_mcp.values import Message

if TYPE_CHECKING:
    from collections.abc import Sequence

OUTPUT_CHARS = 10_000
"""How much of a cell's output a model is shown. The trajectory keeps all of it."""
ERROR_CHARS = 4_000
"""How much of a traceback a model is shown: more than any that helps, less than a recursion's."""
PREVIEW_CHARS = 1_000
"""How much of an input a prompt shows."""

EMPTY_REPLY = "(empty reply)"
"""Stands for a reply without text: providers refuse messages that are empty."""


class Transcript:
    """An append-only conversation with one model."""

    def __init__(self, opening: Sequence[Message]) -> None:
        self._messages = [Message(each.role, _sendable(each.content)) for each in opening]

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation so far."""
        return tuple(self._messages)

    def reply(self, text: str) -> None:
        """Append a reply of the model."""
        self._messages.append(Message("assistant", _sendable(text.rstrip()) or EMPTY_REPLY))

    def add_message(self, text: str) -> None:
        """Append a message to the model."""
        self._messages.append(Message("user", _sendable(text)))


def fingerprint(messages: Sequence[Message], model: str = "") -> str:
    """The SHA-256 of a conversation, or of a request to a model of this name, in hex."""
    digest = hashlib.sha256(model.encode())
    for message in messages:
        content = message.content.encode("utf-8", "surrogatepass")
        digest.update(f"\n{message.role} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def _sendable(text: str) -> str:
    """`text` without lone surrogates, which programs print and no request can carry."""
    return text.encode("utf-8", "replace").decode("utf-8")


def framed(kind: str, text: str, mark: str) -> str:
    """`text` between tags with the mark of the run, which data cannot contain."""
    tag = f"{kind}-{mark}" if mark else kind
    return f"<{tag}>\n{text}\n</{tag}>"


def truncate(text: str, limit: int) -> str:
    """`text`, or its first and last `limit` / 2 characters and how many were left out between."""
    if len(text) <= limit:
        return text
    tail = limit // 2
    head = limit - tail
    return (
        f"{text[:head]}\n… {len(text) - limit:,} characters left out …\n{text[len(text) - tail :]}"
    )
