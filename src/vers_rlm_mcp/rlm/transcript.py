"""The transcript: the model's replies, and the messages to it.

Messages are only ever appended, so that every request begins with the previous one byte for byte
and the provider's prompt cache is hit.
"""

from __future__ import annotations

import hashlib
import re
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


def fold(text: str) -> str:
    """`text` as a terminal would show it: of a progress bar its last state, no colours."""
    if not _CONTROL.search(text):
        return text
    lines: list[list[str]] = [[]]
    row = column = 0
    for match in _PIECES.finditer(text):
        piece = match.group()
        if match["plain"]:
            line = lines[row]
            line += [" "] * (column - len(line))
            line[column : column + len(piece)] = piece
            column += len(piece)
        elif piece == "\n":
            row, column = row + 1, 0
            if row == len(lines):
                lines.append([])
        elif piece == "\r":
            column = 0
        elif piece == "\b":
            column = max(0, column - 1)
        elif match["command"]:
            row, column = _obey(match["command"], match["numbers"], lines, row, column)
    return "\n".join("".join(line).rstrip() for line in lines)


def _obey(
    command: str, numbers: str, lines: list[list[str]], row: int, column: int
) -> tuple[int, int]:
    """Move or erase as an escape sequence says; what only colours is passed over."""
    first = numbers.partition(";")[0]
    count = min(int(first), _FARTHEST) if first.isdecimal() and len(first) < 6 else 0
    if command == "A":
        row = max(0, row - (count or 1))
    elif command == "B":
        row = min(len(lines) - 1, row + (count or 1))
    elif command == "C":
        column = min(column + (count or 1), _FARTHEST)
    elif command == "D":
        column = max(0, column - (count or 1))
    elif command == "G":
        column = max(0, count - 1)
    elif command == "K":
        line = lines[row]
        if count == 0:
            del line[column:]
        else:
            line[: column if count == 1 else len(line)] = [" "] * (column if count == 1 else 0)
    elif command == "J" and count in (0, 2):
        del lines[row + 1 :]
        lines[row] = lines[row][:column] if count == 0 else []
    return row, column


_CONTROL = re.compile("[\r\b\x1b]")
_PIECES = re.compile(
    r"(?P<plain>[^\r\n\b\x1b]+)|\n|\r|[\b]"
    r"|\x1b\[(?P<numbers>[0-9;?]*)(?P<command>[A-Za-z])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b.?"
)
_FARTHEST = 1_000
"""Columns or lines that one sequence moves at most."""


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
