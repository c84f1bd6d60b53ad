"""`vers-rlm-mcp help` and `vers-rlm-mcp settings show`."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import click

from vers_rlm_mcp.settings import PROVIDER_VARIABLES, Settings, find_settings, flag, variable
from vers_rlm_mcp.settings_files import PROJECT_FILE, user_file

from .exit_codes import MEANINGS
from .options import describe_setting, given_settings, read_settings
from .terminal import format_table, print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH = 100


def show_help(context: click.Context, topic: Sequence[str]) -> None:
    """Print the help of a command, or of a topic that is none."""
    if topic == ("settings",):
        click.echo(_settings_help())
        return
    if topic in (("exit-codes",), ("exit", "codes")):
        click.echo("\n".join(f"{code:>8}  {meaning}" for code, meaning in MEANINGS.items()))
        return
    root = context.find_root()
    command: click.Command = root.command
    where = root
    for name in topic:
        if not isinstance(command, click.Group) or not (found := command.get_command(where, name)):
            raise click.UsageError(
                f"There is no help on {' '.join(topic)!r}. Topics are the commands, `settings` and "
                "`exit-codes`.",
                root,
            )
        command, where = found, click.Context(found, info_name=name, parent=where)
    click.echo(command.get_help(where))


def show_settings(context: click.Context, *, as_json: bool) -> None:
    """Print each setting's value and source; secrets are only said to be set."""
    values = read_settings(context)
    sources = find_settings(given_settings(context))
    rows = [
        (name, _shown(name, getattr(values, name)), _source(name, sources))
        for name in Settings.model_fields
    ]
    if as_json:
        print_json({name: {"value": text, "source": source} for name, text, source in rows})
        return
    click.echo(format_table([("SETTING", "VALUE", "FROM"), *rows]))
    click.echo(f"\nSettings files: {user_file()}; {PROJECT_FILE} in the working directory.")


def _shown(name: str, value: Any) -> str:
    if value in (None, ()):
        return "-"
    if not Settings.model_fields[name].repr:
        return "(set)"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def _source(name: str, sources: dict[str, tuple[Any, str]]) -> str:
    source = sources[name][1] if name in sources else "default"
    return flag(name) if source == "given" else source


def _settings_help() -> str:
    lines = [
        "Every setting is an option of every command, an environment variable, and a name in a "
        "settings file.",
        "Options win over variables, variables over files.",
        "",
        f"  {user_file()}",
        "      The user's settings, as TOML: max_usd = 2.0",
        f"  {PROJECT_FILE} in the working directory",
        "      May only name models and lower limits.",
        "",
    ]
    for name in Settings.model_fields:
        lines.append(f"{flag(name)}, {variable(name)}")
        lines += textwrap.wrap(
            describe_setting(name), WIDTH, initial_indent="      ", subsequent_indent="      "
        )
    lines += ["", "Variables of providers:"]
    for name, meaning in PROVIDER_VARIABLES.items():
        lines += textwrap.wrap(f"{name}: {meaning}", WIDTH, subsequent_indent="      ")
    return "\n".join(lines)
