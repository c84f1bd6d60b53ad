"""Changes the code of cells where it says more than its values would.

Functions of the REPL return plain values, yet they can be awaited: where the result of a call is
awaited, the call is started in a thread (`concurrency`), and the event loop continues. Everywhere
else the same call waits and returns its value.

    await llmQuery(p)                                      started, awaited
    asyncio.gather(*[llmQuery(p) for p in prompts])        all started
    tasks = [llmQuery(p) for p in prompts]                 started, since `tasks` is awaited
    await asyncio.gather(*tasks)
    answer = llmQuery(p)                                   waits, returns a str

In ``FINAL_VAR("x")`` x is a name, in ``FINAL_VAR(x)`` it is the value.
"""

from __future__ import annotations

import ast
from collections import Counter

from .concurrency import NAME

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Collection, Iterator

_COMBINATORS = frozenset(
    {"as_completed", "create_task", "ensure_future", "gather", "shield", "wait", "wait_for"}
)
_ONLY_OF_ASYNCIO = frozenset({"run"})
"""Functions of asyncio whose names other modules have, too."""
_COPIES = frozenset({"list", "set", "tuple", "iter", "enumerate", "reversed"})
_PARTS = frozenset({"values", "items", "copy"})


def compile_awaits(tree: ast.Module, names: Collection[str]) -> None:
    """Let the code of a cell await results of the functions with these names."""
    if any(isinstance(node, ast.Await) or _is_combinator(node) for node in ast.walk(tree)):
        _Awaits(names, _awaited_names(tree)).visit(tree)
        ast.fix_missing_locations(tree)


def _awaited_names(tree: ast.Module) -> set[str]:
    """Variables that hold what is awaited, alone or in a collection."""
    uses: list[str] = []
    sources: list[tuple[str, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Await):
            uses += _names_in(node.value)
        elif isinstance(node, ast.Call) and _is_combinator(node):
            for arg in node.args:
                uses += _names_in(arg)
        elif isinstance(node, (ast.For, ast.AsyncFor, ast.comprehension)):
            targets = {each.id for each in ast.walk(node.target) if isinstance(each, ast.Name)}
            sources += [(t, name) for t in targets for name in _names_in(node.iter)]
        elif isinstance(node, ast.Assign) and isinstance(node.value, (ast.Name, ast.Subscript)):
            targets = {each.id for each in node.targets if isinstance(each, ast.Name)}
            sources += [(t, name) for t in targets for name in _names_in(node.value)]
    awaited = set(uses)
    for _ in sources:  # each round follows one more link
        more = {name for target, name in sources if target in awaited} - awaited
        if not more:
            break
        awaited |= more
    return awaited - _used_otherwise(tree, uses)


def _used_otherwise(tree: ast.Module, uses: list[str]) -> set[str]:
    """Variables that hold the result of one call, which is not only awaited: a plain value."""
    loads = Counter(
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    )
    awaited = Counter(uses)
    single = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
        for target in node.targets
        if isinstance(target, ast.Name)
        and isinstance(node.value.func, ast.Name)
        and node.value.func.id not in _COPIES
    }
    return {name for name in single if loads[name] > awaited[name]}


def _names_in(node: ast.AST) -> Iterator[str]:
    """The variables whose values, or whose items, an expression stands for."""
    if isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, (ast.Starred, ast.Subscript)):
        yield from _names_in(node.value)
    elif isinstance(node, (ast.List, ast.Set, ast.Tuple)):
        for each in node.elts:
            yield from _names_in(each)
    elif isinstance(node, (ast.ListComp, ast.SetComp, ast.GeneratorExp)):
        yield from _names_in(node.elt)
    elif isinstance(node, ast.Call):
        function = node.func
        if isinstance(function, ast.Attribute) and function.attr in _PARTS:
            yield from _names_in(function.value)
        elif isinstance(function, ast.Name) and function.id in _COPIES and node.args:
            yield from _names_in(node.args[0])


def _is_combinator(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    function = node.func
    if isinstance(function, ast.Name):
        return function.id in _COMBINATORS
    if not isinstance(function, ast.Attribute):
        return False
    of_asyncio = isinstance(function.value, ast.Name) and function.value.id == "asyncio"
    return function.attr in _COMBINATORS or (of_asyncio and function.attr in _ONLY_OF_ASYNCIO)


class _Awaits(ast.NodeTransformer):
    """Puts `Concurrency` where results are awaited."""

    def __init__(self, names: Collection[str], awaited: set[str]) -> None:
        self._names = names
        self._awaited = awaited

    def visit_Await(self, node: ast.Await) -> ast.AST:
        node.value = self._start(node.value)
        self.generic_visit(node)
        node.value = _helper("awaitable", [node.value])
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        function = node.func
        if _is_combinator(node):
            node.args = [self._start(arg) for arg in node.args]
            self.generic_visit(node)
            return _helper("combine", [node.func, *node.args], node.keywords)
        if isinstance(function, ast.Attribute) and function.attr in ("append", "add"):
            collection = set(_names_in(function.value))
            node.args = [self._start(a) if collection & self._awaited else a for a in node.args]
        self.generic_visit(node)
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        names = {name for target in node.targets for name in _names_in(target)}
        if names & self._awaited:
            node.value = self._start(node.value)
        self.generic_visit(node)
        return node

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        if set(_names_in(node.target)) & self._awaited:
            node.value = self._start(node.value)
        self.generic_visit(node)
        return node

    def _start(self, node: ast.expr) -> ast.expr:
        """An expression that starts the calls whose results it stands for."""
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return self._start_call(node, node.func.id)
        if isinstance(node, ast.Starred):
            node.value = self._start(node.value)
        elif isinstance(node, (ast.List, ast.Set, ast.Tuple)):
            node.elts = [self._start(each) for each in node.elts]
        elif isinstance(node, (ast.ListComp, ast.SetComp, ast.GeneratorExp)):
            node.elt = self._start(node.elt)
        elif isinstance(node, ast.DictComp):
            node.value = self._start(node.value)
        elif isinstance(node, ast.Dict):
            node.values = [self._start(each) for each in node.values]
        elif isinstance(node, ast.IfExp):
            node.body, node.orelse = self._start(node.body), self._start(node.orelse)
        return node

    def _start_call(self, node: ast.Call, name: str) -> ast.expr:
        if name in self._names:
            return _helper("start", [node.func, *node.args], node.keywords)
        if name in _COPIES and node.args:
            node.args[0] = self._start(node.args[0])
        first = node.args[0] if node.args else None
        if name == "map" and isinstance(first, ast.Name) and first.id in self._names:
            node.args[0] = _helper("starter", [first])
        return node


def _helper(name: str, args: list[ast.expr], keywords: list[ast.keyword] | None = None) -> ast.Call:
    helper = ast.Attribute(ast.Name(NAME, ast.Load()), name, ast.Load())
    return ast.Call(helper, args, keywords or [])


def compile_final_var(tree: ast.Module) -> None:
    """Mark the arguments of FINAL_VAR that are no literals: they are meant as values."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id == "FINAL_VAR":
            node.args = [_marked(arg) for arg in node.args]
            for keyword in node.keywords:
                if keyword.arg:
                    keyword.value = _marked(keyword.value)
            ast.fix_missing_locations(tree)


def _marked(arg: ast.expr) -> ast.expr:
    if isinstance(arg, (ast.Constant, ast.Starred)):
        return arg
    marker = ast.Attribute(ast.Name("FINAL_VAR", ast.Load()), "value", ast.Load())
    return ast.copy_location(ast.Call(marker, [arg], []), arg)
