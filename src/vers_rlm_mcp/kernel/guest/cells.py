"""Compiles and runs cells: echo of the last expression, top-level await, readable errors."""

from __future__ import annotations

import ast
import linecache
import os
import re
import sys
import traceback
import types

from .compiler import compile_awaits, compile_final_var
from .sources import find_classes_in_cells

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Collection

MAX_ERROR = 16 * 1024
"""Characters of an error's text: a long traceback fits, a message of megabytes does not."""

MAX_ECHO = 200_000
"""Characters of a str or bytes that are echoed whole: more than is ever shown of an output."""

_AWAITS = 0x80  # inspect.CO_COROUTINE; `inspect` is slow to import
_CELL_FRAME = re.compile(r'File "(Cell \d+)", line')
_LIBRARY = (os.path.dirname(os.__file__), sys.prefix, "<frozen")


class Cell:
    """One cell: its code, compiled to run in a namespace.

    Args:
        code: Python source.
        number: Its place among the cells.
        functions: The names of the functions of the REPL.
    """

    def __init__(self, code: str, number: int, functions: Collection[str] = ()) -> None:
        self.name = f"Cell {number}"
        # Lines as Python counts them: `splitlines` also splits at form feeds, U+2028 and others.
        lines = [line + "\n" for line in re.split("\r\n|\r|\n", code)]
        # Without a time of change, the cache never asks the disk for it.
        linecache.cache[self.name] = (len(code), None, lines, self.name)
        self._code = code
        self._functions = functions

    def run(self, namespace: dict[str, Any], echo: Callable[[str], None]) -> None:
        """Run the cell; `echo` gets the representation of its last expression, unless None.

        Whatever the cell raises comes out, SyntaxError included.
        """
        value = self._evaluate(namespace)
        if isinstance(value, types.CoroutineType):
            value = _await(value)  # main() where `await main()` was meant
        if value is not None:
            namespace["_"] = value
            echo(represent(value) + "\n")

    def _evaluate(self, namespace: dict[str, Any]) -> Any:
        """Run everything; return the value of the last statement if it is an expression."""
        tree = ast.parse(self._code, self.name)
        compile_awaits(tree, self._functions)
        compile_final_var(tree)
        if "inspect" in self._code:
            find_classes_in_cells()
        last = tree.body[-1] if tree.body else None
        parts: list[ast.Module | ast.Expression] = [tree]
        if isinstance(last, ast.Expr):
            tree.body.pop()
            parts.append(ast.Expression(last.value))
        codes = [self._compile(part) for part in parts]
        if any(code.co_flags & _AWAITS for code in codes):
            return _await(_evaluate_awaiting(codes, namespace))
        return [eval(code, namespace) for code in codes][-1]

    def _compile(self, tree: ast.Module | ast.Expression) -> types.CodeType:
        mode = "exec" if isinstance(tree, ast.Module) else "eval"
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        return compile(tree, self.name, mode, flags, dont_inherit=True)


async def _evaluate_awaiting(codes: list[types.CodeType], namespace: dict[str, Any]) -> Any:
    value = None
    for code in codes:
        value = eval(code, namespace)
        if code.co_flags & _AWAITS:
            value = await value
    return value


_loop: Any = None


def _await(coroutine: Any) -> Any:
    """Run a coroutine on the loop that all cells share; its tasks continue in later cells."""
    global _loop
    import asyncio

    if _loop is None or _loop.is_closed():
        _loop = asyncio.new_event_loop()
    task = _loop.create_task(coroutine)
    try:
        return _loop.run_until_complete(task)
    except KeyboardInterrupt as interrupt:
        if task.done():
            raise
        task.cancel()  # the loop was interrupted while it waited
        try:
            _loop.run_until_complete(task)
        except asyncio.CancelledError as cancelled:
            raise interrupt.with_traceback(cancelled.__traceback__) from None
        raise


def represent(value: Any) -> str:
    """What `repr` says; of a long str or bytes, the beginning and the end."""
    if isinstance(value, (str, bytes, bytearray)) and len(value) > MAX_ECHO:
        half = MAX_ECHO // 2
        left = len(value) - 2 * half
        return f"{value[:half]!r} … {left} of {len(value)} left out … {value[-half:]!r}"
    return repr(value)


def describe_error(error: BaseException) -> str:
    """The traceback without frames of libraries and of the kernel."""
    try:
        report = traceback.TracebackException.from_exception(error)
        _keep_own_frames(report, set())
        text = "".join(report.format())
    except Exception as broken:  # noqa: BLE001 - the code of any class runs
        text = f"{type(error).__name__} (its text cannot be made: {type(broken).__name__})\n"
    text = _CELL_FRAME.sub(r"\1, line", text).rstrip()
    if len(text) > MAX_ERROR:
        half = MAX_ERROR // 2
        text = f"{text[:half]}\n… {len(text) - 2 * half} characters left out …\n{text[-half:]}"
    return text


def _keep_own_frames(report: traceback.TracebackException, seen: set[int]) -> None:
    if id(report) in seen:
        return
    seen.add(id(report))
    own = [frame for frame in report.stack if _is_own(frame.filename)]
    report.stack = traceback.StackSummary.from_list(own)
    for other in (
        report.__cause__,
        report.__context__,
        *(getattr(report, "exceptions", None) or ()),
    ):
        if other is not None:
            _keep_own_frames(other, seen)


def _is_own(filename: str) -> bool:
    library = filename.startswith(_LIBRARY) or "site-packages" in filename
    return not library and not filename.startswith(_KERNEL)


_KERNEL = os.path.dirname(os.path.dirname(_is_own.__code__.co_filename))
