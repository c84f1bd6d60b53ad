"""Settings as command-line options, which every command accepts, and what they say together."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeVar

import click
from pydantic import ValidationError

from vers_rlm_mcp.errors import SettingsError
from vers_rlm_mcp.settings import (
    SEPARATORS,
    Settings,
    find_settings,
    flag,
    unknown_variables,
    variable,
)

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")


def takes_settings(*shown: str) -> Callable[[F], F]:
    """Let a command accept every setting as an option; its help lists only those named here."""

    def decorate(function: F) -> F:
        names = [*shown, *(name for name in Settings.model_fields if name not in shown)]
        for name in reversed(names):
            function = _setting(name, hidden=name not in shown)(function)
        return function

    return decorate


def read_settings(context: click.Context) -> Settings:
    """Build the settings from the options, the environment and the settings files.

    Raises:
        SettingsError: A value is invalid.
    """
    given = given_settings(context)
    try:
        return Settings(**given)
    except ValidationError as error:
        sources = find_settings(given)
        problems = [
            f"{_describe_source(name, sources)}: {each['msg']}"
            for each in error.errors(include_url=False, include_input=False)
            for name in [str(each["loc"][0])]
        ]
        raise SettingsError(
            "; ".join(problems) + ". `vers-rlm-mcp help settings` lists all settings."
        ) from None


def given_settings(context: click.Context) -> dict[str, Any]:
    """The settings that options give, before the command and after it.

    The last one wins; those with several values are added up.
    """
    given: dict[str, Any] = {}
    for each in _path(context):
        for name, value in each.params.items():
            if name not in Settings.model_fields or value in (None, ()):
                continue
            if name in SEPARATORS:
                given[name] = (*given.get(name, ()), *value)
            else:
                given[name] = value
    for name, separator in SEPARATORS.items():
        # A directory given by a flag may contain the separator in its name.
        if name in given and name != "allow_dir":
            given[name] = separator.join(given[name])
    return given


def has_flag(context: click.Context, name: str) -> bool:
    """Whether an option that is no setting, such as ``--quiet``, was given anywhere."""
    return any(each.params.get(name) for each in _path(context))


def warn_of_unknown_variables() -> None:
    """Name environment variables that look like settings and are none."""
    for name, suggestion in unknown_variables().items():
        print(
            f"vers-rlm-mcp: warning: {name} is not a setting{suggestion}; it is ignored.",
            file=sys.stderr,
        )


def describe_setting(name: str, *, briefly: bool = False) -> str:
    """A setting's description and default, as a line of a command's help."""
    field = Settings.model_fields[name]
    text = field.description or ""
    if briefly:
        text = text.split(". ")[0].split(": ")[0].rstrip(".") + "."
    default: object = None if field.default_factory else field.default
    return text if default in (None, (), False, True) else f"{text}  [default: {_plain(default)}]"


def _setting(name: str, *, hidden: bool) -> Callable[[F], F]:
    text = describe_setting(name, briefly=True)
    if Settings.model_fields[name].annotation is bool:
        both = f"{flag(name)}/{flag('no_' + name)}"
        return click.option(both, name, default=None, hidden=hidden, help=text)
    return click.option(
        flag(name),
        name,
        metavar="VALUE",
        multiple=name in SEPARATORS,
        hidden=hidden,
        help=f"{text} May be repeated." if name in SEPARATORS else text,
    )


def _plain(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def _describe_source(name: str, sources: dict[str, tuple[Any, str]]) -> str:
    _, source = sources.get(name, (None, "given"))
    if source == "given":
        return flag(name)
    return source if source == variable(name) else f"{source}: {name}"


def _path(context: click.Context) -> list[click.Context]:
    """The contexts from the program's own to the command's."""
    return [*(_path(context.parent) if context.parent else ()), context]
