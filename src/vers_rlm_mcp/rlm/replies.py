"""Parses models' replies: the code of a step, the JSON of an extraction.

Blocks marked as Python are run in order, as one cell. Unmarked blocks are run only if there are
none of these; blocks of other languages never are.
"""

from __future__ import annotations

import json
import re
import textwrap
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import JsonValue

_PYTHON = frozenset({"python", "py", "python3", "repl"})
_OPENING = re.compile(
    r"^(?P<indent>[ \t]*)(?P<fence>`{3,}|~{3,})[ \t]*(?P<language>[\w+-]*)[^\n`]*$", re.MULTILINE
)
_CODE = r"""
    '{3} (?:[^'\\]|\\.|'{1,2}[^'\\]|'{1,2}\\.)*+ '{3}
  | "{3} (?:[^"\\]|\\.|"{1,2}[^"\\]|"{1,2}\\.)*+ "{3}
  | '(?:\\.|[^'\\\n])*+'? | "(?:\\.|[^"\\\n])*+"? | \#[^\n]* | \\.
  | ^[ \t]*+(?P<closing>%s{%d,})[ \t]*$
"""
"""What matters in the code of a block: strings, escapes and comments, to skip them, and its own
end. A triple-quoted string that is never closed is not skipped, so that its block ends at the next
fence. No part is ever scanned twice (possessive quantifiers, optional closing quotes): replies are
long, and their writer may be hostile. A possessive quantifier with a lookahead in it is one that
Python 3.11.2 gets wrong."""
_FINAL = re.compile(r"\bFINAL(_VAR)?\s*\(")
_MAX_OBJECTS = 100
"""How many `{` of a reply are tried as the beginning of JSON."""


@dataclass(frozen=True, slots=True)
class ParsedReply:
    """The parts of a step's reply."""

    reasoning: str
    """The text around the code."""
    code: str
    """The code to run; empty if there is none."""
    closed: bool = True
    """False if the code's last block has no end."""
    left_out: int = 0
    """How many blocks `parse_reply` left out."""


@dataclass(frozen=True, slots=True)
class _Block:
    language: str
    code: str
    start: int
    end: int
    closed: bool


def parse_reply(text: str) -> ParsedReply:
    """Find the code in a reply.

    A fence inside a string of the code does not close its block. If a later block calls
    ``FINAL``, it and all that follow are left out: an answer must rest on output that was seen,
    and models do write down the output they expect and continue from there.
    """
    text = text.replace("\r\n", "\n")
    blocks = [block for block in _blocks(text) if block.code.strip()]
    found = [block for block in blocks if block.language in _PYTHON]
    found = found or [block for block in blocks if not block.language]
    if not found:
        return ParsedReply(text.strip(), "")
    run = [found[0], *takewhile(lambda block: not _FINAL.search(block.code), found[1:])]
    return ParsedReply(
        reasoning=_without(text, found),
        code="\n".join(block.code for block in run),
        closed=run[-1].closed,
        left_out=len(found) - len(run),
    )


def parse_objects(text: str) -> Iterator[dict[str, JsonValue]]:
    """The JSON objects in a reply, outermost ones only, first to last."""
    decoder = json.JSONDecoder(strict=False)
    at = text.find("{")
    for _ in range(_MAX_OBJECTS):
        if at < 0:
            return
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
        else:
            yield cast("dict[str, JsonValue]", value)
        at = text.find("{", end)


def _blocks(text: str) -> Iterator[_Block]:
    at = 0
    while opening := _OPENING.search(text, at):
        start = min(opening.end() + 1, len(text))
        end, at, closed = _closing(text, start, opening["fence"])
        code = text[start:end].rstrip()
        if opening["indent"]:
            code = textwrap.dedent(code)
        yield _Block(opening["language"].lower(), code, opening.start(), at, closed)


def _closing(text: str, start: int, fence: str) -> tuple[int, int, bool]:
    """The end of the block that begins at `start`, the end of its fence, and if it is closed."""
    pattern = _CODE % (fence[0], len(fence))
    for match in re.compile(pattern, re.VERBOSE | re.DOTALL | re.MULTILINE).finditer(text, start):
        if match["closing"]:
            return match.start(), match.end(), True
    return len(text), len(text), False


def _without(text: str, blocks: list[_Block]) -> str:
    starts = [0, *(block.end for block in blocks)]
    ends = [*(block.start for block in blocks), len(text)]
    parts = (text[start:end].strip() for start, end in zip(starts, ends, strict=True))
    return "\n\n".join(part for part in parts if part)
