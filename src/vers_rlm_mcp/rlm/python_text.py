"""What can be told of Python code without running it."""

from __future__ import annotations

import ast
import html
import re
import textwrap
import warnings
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

_INVISIBLE = re.compile("[\u200b\u200c\u200d\u2060\ufeff]")
_SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'})

_ACTS = (
    *(ast.Import, ast.ImportFrom, ast.Assign, ast.AugAssign, ast.FunctionDef, ast.ClassDef),
    *(ast.AsyncFunctionDef, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try),
)
"""Statements that no sentence of prose is."""


@lru_cache(maxsize=8)
def parse(code: str) -> ast.Module | None:
    """The code as a tree, which must not be changed; None if this Python cannot read it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def parses(code: str) -> bool:
    """Whether it is Python."""
    return parse(code) is not None


def is_program(code: str) -> bool:
    """Whether it is Python beyond doubt: prose, names and JSON are valid Python, too."""
    tree = parse(code)
    if tree is None or not tree.body:
        return False
    *most, last = tree.body
    return (
        all(map(_is_statement, most))
        and any(map(_acts, tree.body))
        and (_is_statement(last) or isinstance(last, ast.Expr))
    )


def is_cell(code: str) -> bool:
    """Whether it is Python that may stand alone, as ``ls -l`` and ``a/b`` do not."""
    tree = parse(code)
    last = tree.body[-1] if tree and tree.body else None
    if len(tree.body if tree else ()) == 1 and isinstance(last, ast.Expr):
        return not isinstance(last.value, ast.BinOp | ast.UnaryOp | ast.Compare) or any(
            isinstance(node, ast.Call | ast.Constant) for node in ast.walk(last)
        )
    return tree is not None


def call_of(code: str, names: Collection[str]) -> ast.Call | None:
    """The call that the code is as a whole, if it is of a function with one of these names."""
    tree = parse(code)
    if tree and len(tree.body) == 1 and isinstance(statement := tree.body[0], ast.Expr):
        call = statement.value
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
            return call if call.func.id in names else None
    return None


def join(parts: Sequence[str]) -> str:
    """One cell of several blocks. What has to be at the beginning of a file is moved there."""
    future: list[str] = []
    kept: list[str] = []
    for number, code in enumerate(parts):
        lines = code.split("\n")
        if number and "from __future__" in code and (tree := parse(code)):
            for node in tree.body:
                if isinstance(node, ast.ImportFrom) and node.module == "__future__":
                    future += lines[node.lineno - 1 : node.end_lineno]
                    lines[node.lineno - 1 : node.end_lineno] = [""] * (
                        (node.end_lineno or node.lineno) - node.lineno + 1
                    )
        kept.append("\n".join(lines))
    return "\n".join([*future, *kept])


def repair(code: str) -> tuple[str, tuple[str, ...]]:
    """Code that is not Python, as the Python that is meant, and what was wrong with it.

    A repair counts only if its result is Python; the code is returned as it is otherwise. Nothing
    is ever completed: the end of a string or a bracket that is missing is not ours to guess.
    """
    if parses(code):
        return code, ()
    done: list[str] = []
    mended = code
    for said, mend in _REPAIRS:
        before, mended = mended, mend(mended)
        if mended != before:
            done.append(said)
            if parses(mended):
                return mended, tuple(done)
    return code, ()


def transcript_code(text: str) -> tuple[str, bool]:
    """The code of an interactive session (``>>>``), and whether it shows outputs in between.

    What follows an output that calls FINAL is left out.
    """
    lines: list[str] = []
    wrote_output = False
    for line in text.split("\n"):
        prompt = _PROMPT.match(line)
        if prompt is None:
            wrote_output = wrote_output or bool(line.strip())
            continue
        code = line[prompt.end() :]
        if wrote_output and re.match(r"FINAL(_VAR)?\s*\(", code):
            break
        lines.append(code)
    return "\n".join(lines), wrote_output


_PROMPT = re.compile(r"[ \t]*(?:>>>|\.\.\.|In ?\[\d+\]:|\.\.\.:)(?: |$)")


def is_transcript(code: str) -> bool:
    """Whether it is an interactive session."""
    first = code.lstrip().partition("\n")[0]
    return re.match(r">>>|In ?\[\d+\]:", first) is not None


def _is_statement(node: ast.stmt) -> bool:
    """A statement that may stand in a program's midst: an expression alone does nothing."""
    if isinstance(node, ast.Expr):
        return _acts(node) or (
            isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        )
    return not isinstance(node, ast.AnnAssign) or node.value is not None


def _acts(node: ast.stmt) -> bool:
    if isinstance(node, ast.If):
        return any(map(_acts, node.body))
    if isinstance(node, ast.Expr):
        value: Any = node.value.value if isinstance(node.value, ast.Await) else node.value
        return isinstance(value, ast.Call)
    return isinstance(node, _ACTS)


def _unescape_breaks(code: str) -> str:
    return code.replace("\\n", "\n").replace('\\"', '"') if "\n" not in code else code


_REPAIRS: Sequence[tuple[str, Callable[[str], str]]] = (
    ("characters that are not seen", lambda code: _INVISIBLE.sub("", _SPACES.sub(" ", code))),
    ("typographic quotes", lambda code: code.translate(_QUOTES)),
    ("HTML entities", html.unescape),
    ("indentation of all lines", textwrap.dedent),
    (r"\n for line breaks", _unescape_breaks),
)
"""What models do to code on its way into a reply: spaces and quotes of word processors
(onyx-dot-app/onyx#509, microsoft/vscode-copilot-chat#647), entities of web pages
(sourcegraph/sourcegraph-public-snapshot#51776), and escapes of JSON. A string that has no end is
not closed for them (cuga-project/cuga-agent#438)."""


def foreign_habits(code: str) -> list[str]:
    """What code of other engines or of notebooks would do, and how it is done here."""
    said: list[str] = []
    if _READY.search(code) and not re.search(r"\bFINAL", code):
        said.append('Setting "ready" in `answer` ends nothing here: call FINAL with the outputs.')
    magic = _MAGIC.search(code)
    if magic and not parses(code):
        said.append(
            f"`{magic[0].strip()[:40]}` is a command of notebooks, not Python: shell commands are "
            "run with `exec(command)`."
        )
    return said


_READY = re.compile(r"""\banswer\b.{0,200}?["']ready["']\]?\s*[=:]\s*True""", re.DOTALL)
"""How models that are trained on rlms hand in an answer."""
_MAGIC = re.compile(r"^[ \t]*(?:!|%%?)\w[^\n]*", re.MULTILINE)
