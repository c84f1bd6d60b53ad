"""Finds the fenced blocks of a reply.

Markdown's rules are bent where models bend them: a fence may open and close anywhere in a line, and
text may follow it. In Python a run of backticks outside of strings and comments is always a fence,
so a block cannot swallow prose, nor prose a block.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from .python_text import parses

if TYPE_CHECKING:
    from collections.abc import Iterator

PYTHON = frozenset(
    {"python", "py", "python2", "python3", "py3", "repl", "ipython", "ipython3", "jupyter"}
    | {"pycon", "python-repl", "tool_code"}
)
SHELLS = frozenset({"bash", "sh", "shell", "zsh", "console", "terminal", "shell-session"})
MARKDOWN = frozenset({"markdown", "md"})
_OTHERS = frozenset(
    {"json", "text", "txt", "plaintext", "output", "yaml", "xml", "html", "sql", "javascript", "js"}
    | {"typescript", "ts", "csv", "diff", "toml", "java", "c", "cpp", "go", "rust", "none"}
)
_LANGUAGES = PYTHON | SHELLS | MARKDOWN | _OTHERS

INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff"
"""Characters that are not seen, and that models copy along."""

_RUN = re.compile(
    r"`{3,}|~{3,}|^<(?P<frame>(?:output|preview|error|check|data)(?:-[0-9a-f]+)?)>", re.M
)
_BEFORE = re.compile(
    rf"[ \t{INVISIBLE}]*(?P<quote>(?:>[ \t]?)*)(?:[-*+]|\d+[.)])?[ \t{INVISIBLE}]*"
)
_INFO = re.compile(r"[{.\s]*(?:language-|lang=)?(?P<language>[\w+#-]*)[}\s]*")
_ATTRIBUTES = re.compile(r"[:;,{(\[#]|[\w.-]+=\S|[\w./-]+\.\w+$|repl$")
"""What else may stand behind the language, besides code."""
_STRINGS = r"""
    '{3} (?:[^'\\]|\\.|'{1,2}[^'\\]|'{1,2}\\.)*+ '{3}
  | "{3} (?:[^"\\]|\\.|"{1,2}[^"\\]|"{1,2}\\.)*+ "{3}
  | '(?:\\.|[^'\\\n])*+'? | "(?:\\.|[^"\\\n])*+"? | \#[^\n]* | \\.
"""
"""What is skipped in code: strings, comments and escapes. A triple-quoted string that is never
closed is not skipped, so that its block ends at the next fence. No part is ever scanned twice
(possessive quantifiers, optional closing quotes): replies are long, and their writer may be
hostile. A possessive quantifier with a lookahead in it is one that Python 3.11.2 gets wrong."""
_ANY_CLOSING = re.compile(_STRINGS + r"| (?P<closing>^[ \t]*+(?:`{3,}|~{3,}))", re.X | re.S | re.M)
_FINAL = re.compile(_STRINGS + r"| (?P<final>(?<![\w.])FINAL(?:_VAR)?\s*\()", re.X | re.S)
_LONGEST_PREFIX = 200
_LONGEST_INFO = 400
"""Characters before and behind a fence on its line that are looked at."""
_MAX_FRAMES = 100
"""Quoted frames of ours that are looked for in one reply."""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a reply."""

    language: str
    code: str
    start: int
    end: int
    closed: bool = True

    @property
    def is_python(self) -> bool:
        """Whether it is marked as Python."""
        return self.language in PYTHON

    @property
    def calls_final(self) -> bool:
        """Whether it calls FINAL, outside of strings and comments."""
        return any(match["final"] for match in _FINAL.finditer(self.code))


def find_blocks(text: str) -> Iterator[Block]:
    """The blocks in a reply, first to last, empty ones included."""
    at, frames = 0, 0
    reopened = False
    while run := _RUN.search(text, at):
        at = run.end()
        if frame := run["frame"]:
            frames += 1
            end = text.find(f"</{frame}>", at) if frames <= _MAX_FRAMES else -1
            at = max(end, at)  # what is quoted from our messages is not code
            continue
        fence = _Fence.of(run, text)
        if fence.closing:
            block, at = _one_line(text, fence), fence.closing.end()
        elif not fence.opens or fence.language in MARKDOWN:
            continue
        else:
            block, after, reopens = _read_block(text, fence)
            doubtful = fence.doubtful or reopened
            if doubtful and block.is_python and not parses(block.code):
                continue  # words about a block, or the end of the one before
            at, reopened = after, reopens
        if block:
            yield block


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fence:
    """A run of fence characters outside of any block."""

    run: re.Match[str]
    mark: str
    count: int
    language: str
    code: str
    """Code behind the language, on the same line."""
    quote: str
    """The marks of a quotation before it."""
    is_first: bool
    """Whether only indentation and marks of lists and quotations are before it on its line."""
    opens: bool
    line_end: int
    closing: re.Match[str] | None
    """The end of a block that begins and ends on this line."""

    @classmethod
    def of(cls, run: re.Match[str], text: str) -> _Fence:
        mark, count = run.group()[0], len(run.group())
        earliest = max(0, run.start() - _LONGEST_PREFIX)
        line = max(text.rfind("\n", earliest, run.start()) + 1, earliest)
        before = _BEFORE.match(text, line, run.start())
        is_first = before is not None and before.end() == run.start()
        line_end = _line_end(text, run.end())
        rest = text[run.end() : min(line_end, run.end() + _LONGEST_INFO)].strip(INVISIBLE + " \t")
        language, code = _read_info(rest)
        opens = not rest or language in _LANGUAGES or (is_first and " " not in rest)
        return cls(
            run=run,
            mark=mark,
            count=count,
            language=language,
            code=code,
            quote=before["quote"] if before and is_first else "",
            is_first=is_first,
            opens=opens and (mark == "`" or is_first),
            line_end=line_end,
            closing=re.compile(rf"{mark}{{{count},}}").search(text, run.end(), line_end),
        )

    @property
    def doubtful(self) -> bool:
        """Whether the text may only speak of a block here."""
        return not self.is_first or bool(self.code)


def _one_line(text: str, fence: _Fence) -> Block | None:
    closing = fence.closing
    assert closing
    inner = text[fence.run.end() : closing.start()].strip(INVISIBLE + " \t")
    language, code = _read_info(inner)
    if language not in PYTHON:
        # Without a language, only a line of its own is a block: other runs are quotations.
        alone = not text[closing.end() : fence.line_end].strip()
        language, code = "", inner if fence.is_first and alone else ""
    if not code or not parses(code):
        return None
    return Block(language, code, fence.run.start(), closing.end())


def _read_block(text: str, fence: _Fence) -> tuple[Block, int, bool]:
    """The block that a fence opens, where to continue, and whether another one opens there."""
    mark, count = fence.mark, fence.count
    body = fence.line_end - len(fence.code) if fence.code else min(fence.line_end + 1, len(text))
    in_code = fence.language in PYTHON or not fence.language
    closing = (_closing_in_code if in_code else _find_line)(text, mark, count, body)
    end, after = (closing.start(), closing.end()) if closing else (len(text), len(text))
    code = text[body:end].rstrip()
    closed, reopens = closing is not None, False
    if not closing and code.endswith(mark * count):  # behind a comment
        code, closed = code.rstrip(mark), True
    elif not closing and in_code and (closing := _other_closing(text, body, code)):
        code, after, closed = text[body : closing.start()].rstrip(), closing.end(), True
    if closing and mark == "`":
        tail = text[closing.end() : _line_end(text, closing.end())].strip(INVISIBLE)
        if tail[:1].strip() and _read_info(tail)[0] in _LANGUAGES:
            # Another block opens, with its fence right behind this one's, or with none for this.
            joined = closing.end() - closing.start() >= 2 * count
            after, reopens = (closing.end() - count if joined else closing.start()), not joined
    code = _clean(code, fence.quote)
    return (
        _with_language(Block(fence.language, code, fence.run.start(), after, closed)),
        after,
        reopens,
    )


def _with_language(block: Block) -> Block:
    """The block with the language that stands on a line of its own below the fence."""
    first, _, rest = block.code.lstrip("\n").partition("\n")
    if not block.language and first.strip().lower() in PYTHON:
        return replace(block, language=first.strip().lower(), code=rest)
    return block


def _clean(code: str, quote: str) -> str:
    code = code.rstrip()
    if quote:
        code = re.sub(r"^[ \t]*>[ \t]?", "", code, flags=re.M).rstrip()
    first = code.lstrip("\n")
    return textwrap.dedent(code) if first[:1] in (" ", "\t") else code


def _read_info(rest: str) -> tuple[str, str]:
    """The language behind a fence, and code that follows it on the same line."""
    match = _INFO.match(rest)
    assert match  # it may be empty
    language = match["language"].lower()
    language = "" if language == "code" else language
    tail = rest[match.end() :].strip()
    if re.fullmatch(r"python\d*|py\d*", language):
        tail = re.sub(r"^\.\d+", "", tail).strip()
        language = "python" if language not in PYTHON else language
    is_code = language in PYTHON and tail and not _ATTRIBUTES.match(tail)
    return language, tail if is_code else ""


def _closing_in_code(text: str, fence: str, count: int, start: int) -> re.Match[str] | None:
    """The fence that ends a block of code: in Python, backticks mean nothing else."""
    return next((m for m in _code(fence, count).finditer(text, start) if m["closing"]), None)


@cache
def _code(fence: str, count: int) -> re.Pattern[str]:
    closing = rf"`{{{count},}}" if fence == "`" else rf"^[ \t]*+~{{{count},}}[ \t]*$"
    return re.compile(_STRINGS + rf"| (?P<closing>{closing})", re.X | re.S | re.M)


def _other_closing(text: str, start: int, code: str) -> re.Match[str] | None:
    """A fence of another kind that closes a block, which is no Python without it."""
    if parses(code):
        return None
    closing = next((m for m in _ANY_CLOSING.finditer(text, start) if m["closing"]), None)
    return closing if closing and parses(text[start : closing.start()]) else None


def _find_line(text: str, fence: str, count: int, start: int) -> re.Match[str] | None:
    """The next line that begins with a fence."""
    at = start
    pattern = re.compile(rf"{fence}{{{count},}}")
    while match := pattern.search(text, at):
        line = text.rfind("\n", 0, match.start()) + 1
        if not text[line : match.start()].strip(f" \t>{INVISIBLE}"):
            return match
        at = match.end()
    return None


def _line_end(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end
