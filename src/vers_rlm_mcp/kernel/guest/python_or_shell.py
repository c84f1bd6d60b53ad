"""Tells Python that was given to ``exec`` by mistake from shell commands."""

from __future__ import annotations

import ast
import shutil

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MAX_CHARS = 100_000
"""What is longer is not looked at."""

_ONLY_PYTHON: Any = (
    *(ast.Import, ast.ImportFrom, ast.Assign, ast.AugAssign, ast.FunctionDef, ast.ClassDef),
    *(
        ast.AsyncFunctionDef,
        ast.For,
        ast.While,
        ast.With,
        ast.Try,
        ast.If,
        ast.Delete,
        ast.Assert,
        ast.AnnAssign,
    ),
)
"""Statements that are no commands. ``x=1`` is one for a shell, too, but changes nothing."""


def is_python(command: Any) -> bool:
    """Whether a command is Python beyond doubt."""
    if not isinstance(command, str) or len(command) > _MAX_CHARS:
        return False
    try:
        body = ast.parse(command).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    if any(_is_command(each) for each in body):
        return False
    return any(isinstance(each, _ONLY_PYTHON) or _is_call(each) for each in body)


def _is_call(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, (ast.Call, ast.Await))


def _is_command(statement: ast.stmt) -> bool:
    """Whether a statement that is Python by chance names a program, as in ``ls -l``."""
    if not isinstance(statement, ast.Expr) or _is_call(statement):
        return False
    node: Any = statement.value
    while isinstance(node, (ast.BinOp, ast.Compare, ast.Attribute)):
        node = node.value if isinstance(node, ast.Attribute) else node.left
    return isinstance(node, ast.Name) and (
        node.id in ("set", "cd", "type") or shutil.which(node.id) is not None
    )
