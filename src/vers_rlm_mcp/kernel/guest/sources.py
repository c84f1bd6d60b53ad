"""Lets `inspect.getsource` find the classes of cells, as it finds their functions by itself."""

from __future__ import annotations

import ast
import linecache
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def find_classes_in_cells() -> None:
    """Teach `inspect`, which knows a class only by the file of its module, where classes are."""
    import inspect

    getfile: Any = inspect.getfile
    if getattr(getfile, "knows_cells", False):
        return

    def getfile_in_cells(object: Any) -> str:
        cell = _cell_of(object) if isinstance(object, type) else None
        return cell or getfile(object)

    setattr(getfile_in_cells, "knows_cells", True)  # noqa: B010 - a type checker would object
    inspect.getfile = getfile_in_cells


def _cell_of(kind: type) -> str | None:
    """The cell that a class of `__main__` was made in: a method's, or the last one to define it."""
    if kind.__module__ != "__main__":
        return None
    for value in vars(kind).values():
        function = getattr(value, "__func__", value)
        own = f"{kind.__qualname__}.{getattr(function, '__name__', '')}"
        if isinstance(function, types.FunctionType) and function.__qualname__ == own:
            return function.__code__.co_filename
    cells = [name for name in linecache.cache if name.startswith("Cell ")]
    for cell in reversed(cells):
        source = "".join(linecache.getlines(cell))
        if f"class {kind.__name__}" in source and _defines(source, kind.__name__):
            return cell
    return None


def _defines(source: str, name: str) -> bool:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(isinstance(node, ast.ClassDef) and node.name == name for node in ast.walk(tree))
