"""Texts in answers: shortened, and counted."""

from __future__ import annotations

TEXT_LIMIT = 40_000
"""Characters of a cell's output or an error in an answer: some 10,000 tokens."""


def shorten(text: str, limit: int) -> str:
    """At most about `limit` characters of `text`: its beginning and its end."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n… {len(text) - 2 * half:,} characters left out …\n{text[-half:]}"
