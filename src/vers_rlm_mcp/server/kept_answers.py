"""Answers that were too long for their client, kept for a while so that they can be read whole."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from typing import Final

from vers_rlm_mcp.errors import UnknownHandle

URI: Final = "answer://{}"

MAX_ANSWERS: Final = 64
MAX_CHARS: Final = 32_000_000
"""What is kept of all clients' answers together; the oldest go first."""


class KeptAnswers:
    """The latest long answers of a server, each for its own principal."""

    def __init__(self) -> None:
        self._texts: OrderedDict[tuple[str | None, str], str] = OrderedDict()

    def keep(self, principal: str | None, text: str) -> str:
        """Keep a text, and return its address."""
        name = secrets.token_hex(4)
        self._texts[principal, name] = text
        while len(self._texts) > MAX_ANSWERS or (
            len(self._texts) > 1 and sum(map(len, self._texts.values())) > MAX_CHARS
        ):
            self._texts.popitem(last=False)
        return URI.format(name)

    def find(self, principal: str | None, name: str) -> str:
        """A text that was kept.

        Raises:
            UnknownHandle: It is no longer there, or never was.
        """
        try:
            return self._texts[principal, name]
        except KeyError:
            raise UnknownHandle(
                f"There is no answer {name!r}, or it is no longer kept: call the tool once more."
            ) from None
