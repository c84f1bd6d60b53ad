"""Declares functions of the REPL where their calls are answered.

The prompt shows what is declared, signatures reserve the names, the kernel makes the functions
available to cells, and calls are dispatched and checked by it.
"""

import builtins
import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import JsonValue, validate_call

from vers_rlm_mcp.values import Parameter, ReplFunction

Answer = Callable[..., Awaitable[JsonValue]]
A = TypeVar("A", bound=Answer)

CARRIED = "carried"
"""The parameter of functions that copy machines: what the guest saved of its variables."""


@dataclass(frozen=True, slots=True)
class Declaration:
    """A call that a guest may make, and the method that answers it."""

    function: ReplFunction
    answer: Answer
    in_run: bool
    """Whether it needs a run."""


_DECLARED: dict[str, Declaration] = {}

DECLARED: Mapping[str, Declaration] = _DECLARED
"""Every call that is answered, by the name that guests call it by."""


def repl_function(usage: str, *, call: str = "", in_run: bool = False) -> Callable[[A], A]:
    """Declare a method to answer the calls of a function of the REPL.

    The method ``vm_branch`` answers ``vmBranch``. Its parameters are the function's, and its
    annotations check the arguments. Functions are shown in the order of their declarations.

    Args:
        usage: What it does and returns, in one line. If it is empty, only the kernel's own code in
            the machine makes this call.
        call: How a call is shown, if not by the method's signature.
        in_run: Whether it needs a run.
    """

    def declare(method: A) -> A:
        twin = method.__name__
        name = _camel_case(twin)
        signature = inspect.signature(method, eval_str=True)
        given = [p for p in signature.parameters.values() if p.name not in ("self", CARRIED)]
        function = ReplFunction(
            name=name,
            twin=twin,
            call=call or f"{name}({', '.join(map(_format_parameter, given))})",
            usage=usage,
            parameters=tuple(map(_parameter, given)),
            copies=CARRIED in signature.parameters,
        )
        _DECLARED[name] = Declaration(function, method, in_run)
        return method

    return declare


def repl_functions() -> tuple[ReplFunction, ...]:
    """The functions that models are shown and cells can call."""
    return tuple(each.function for each in _DECLARED.values() if each.function.usage)


def reserved_names() -> frozenset[str]:
    """The names that an input must not have."""
    return frozenset(name for f in repl_functions() for name in (f.name, f.twin))


def reserved_inputs() -> frozenset[str]:
    """The names that an input must not have: it would hide what the code of cells calls."""
    return reserved_names() | (_BUILTINS - _DATA)


_BUILTINS = frozenset(name for name in dir(builtins) if callable(getattr(builtins, name)))
_DATA = frozenset(
    {"bin", "compile", "copyright", "credits", "dir", "exit", "filter", "format", "hash", "help"}
    | {"id", "input", "iter", "license", "next", "object", "property", "quit", "slice", "vars"}
)
"""Builtins whose names are common for data, and that cells hardly call."""


@cache
def checked(method: Answer) -> Answer:
    """`method`, checking its arguments; made at its first call, once for all runs."""
    return validate_call(method)


def _camel_case(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(map(str.capitalize, others))


def _format_parameter(parameter: inspect.Parameter) -> str:
    return str(parameter.replace(annotation=inspect.Parameter.empty))


def _parameter(parameter: inspect.Parameter) -> Parameter:
    required = parameter.default is inspect.Parameter.empty
    kind: Any = parameter.annotation
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    return Parameter(
        name=parameter.name,
        type="str" if kind is str else "int" if kind is int else None,
        required=required,
        default=None if required else parameter.default,
    )
