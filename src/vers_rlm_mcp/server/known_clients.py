"""What clients do with answers: how long they wait for one, and how much of it they show."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from .application import application

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mcp.server.mcpserver import Context

MARGIN: Final = 0.95
"""Of what a client shows, for what it adds itself."""

META_MAX: Final = "anthropic/maxResultSizeChars"
"""The key in a tool's `_meta` with which Claude Code shows longer answers."""


@dataclass(frozen=True, slots=True)
class KnownClient:
    """A client, as measured."""

    seconds: float = 50.0
    """How long it waits for a call while it receives progress. Several give up after a minute."""
    chars: int = 40_000
    """Characters of an answer that it shows; it cuts what is longer."""
    in_bytes: bool = False
    """Whether it counts bytes instead."""
    lines: int | None = None
    """Lines that it shows."""
    takes_meta: bool = False
    """Whether it shows more of a tool's answers if the tool's `_meta` says so."""

    @property
    def room(self) -> int:
        """The size that text and fields of an answer may have together."""
        return int(self.chars * MARGIN)

    def with_tool(self, meta: Mapping[str, Any] | None) -> KnownClient:
        """The client as it shows the answers of a tool with this `_meta`."""
        chars = (meta or {}).get(META_MAX)
        return replace(self, chars=chars) if chars and self.takes_meta else self

    def measure(self, text: str) -> int:
        """The size of a text, as the client counts it."""
        # Most are written in JavaScript, where a character is a unit of UTF-16.
        return len(text.encode("utf-8", "replace")) if self.in_bytes else utf16_length(text)


KNOWN: Final = {
    "claude-code": KnownClient(280.0, 50_000, takes_meta=True),
    "codex-mcp-client": KnownClient(140.0, 48_000),
    "gemini-cli-mcp-client": KnownClient(140.0, 40_000),
    "opencode": KnownClient(140.0, 51_200, in_bytes=True, lines=2_000),
}
"""Clients, by the names that they give."""


def client_of(context: Context[Any, Any]) -> KnownClient:
    """The client of a call, with what the settings say in place of what is known."""
    params, settings = context.session.client_params, application(context).settings
    known = KNOWN.get(params.client_info.name if params else "", KnownClient())
    if settings.answer_chars is not None:
        known = replace(known, chars=settings.answer_chars, in_bytes=False, takes_meta=False)
    if settings.wait_seconds is not None:
        known = replace(known, seconds=settings.wait_seconds)
    return known


def utf16_length(text: str) -> int:
    """The length of a text as JavaScript counts it."""
    return len(text) + sum(character > "\uffff" for character in text)
