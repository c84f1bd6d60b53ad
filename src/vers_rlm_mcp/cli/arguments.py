"""Command-line arguments, and the settings given by them."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from vers_rlm_mcp import __version__
from vers_rlm_mcp.errors import SettingsError
from vers_rlm_mcp.settings import SEPARATORS, Settings, flag, variable

DEFAULT_PORT = 8765
LAST_PORT = 65_535


def create_parser() -> argparse.ArgumentParser:
    """Create the parser for all commands. It stores the command's name, or None, as `command`."""
    parser = argparse.ArgumentParser(
        prog="vers-rlm-mcp",
        allow_abbrev=False,
        description="An MCP server that gives an AI agent a whole machine to think with. "
        "Without a command it speaks MCP on stdin and stdout.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.set_defaults(transport="stdio")
    _add_settings(parser, repeated="{}_before")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        _add_settings(sub, repeated="{}")
        return sub

    _add_serve(command("serve", "Serve MCP over HTTP (or stdio)."))
    _add_run(command("run", "Run one task in the terminal, with live progress."))
    command("demo", "Demonstrate vers_rlm on real files in a real machine.")
    command("doctor", "Check that machines and models work, and say how to fix what does not.")
    _add_runs(command("runs", "List, inspect, resume, replay and prune recorded runs."))
    _add_machines(command("machines", "List, delete, compare or sweep machines."))
    return parser


def _add_settings(parser: argparse.ArgumentParser, *, repeated: str) -> None:
    """Add a flag for each setting.

    Flags have no defaults, so that they work both before and after COMMAND. Flags that may be
    repeated are stored under a name for each place, which `repeated` is the format of.
    """
    group = parser.add_argument_group("settings", "also available as VERS_RLM_… in the environment")
    for name, field in Settings.model_fields.items():
        text = (field.description or "").replace("%", "%%")
        add = partial(group.add_argument, flag(name), default=argparse.SUPPRESS)
        if name in SEPARATORS:
            several = f"{text} May be repeated."
            add(dest=repeated.format(name), action="append", metavar="VALUE", help=several)
        elif field.annotation is bool:
            add(action=argparse.BooleanOptionalAction, help=text)
        else:
            add(metavar="VALUE", help=text)


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--transport", choices=["http", "sse", "stdio"], default="http")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=_port, default=DEFAULT_PORT)


def _port(text: str) -> int:
    if not 0 <= (port := int(text)) <= LAST_PORT:
        raise argparse.ArgumentTypeError(f"a port is 0 (any) to {LAST_PORT}, not {port}")
    return port


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("signature", help='inputs and outputs, e.g. "task -> answer"')
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an input: text, or JSON if the signature declares another type; "
        "NAME=@PATH reads the value from a file",
    )
    parser.add_argument(
        "--file",
        action="append",
        default=[],
        type=Path,
        metavar="PATH",
        help="a file to copy into the machine",
    )
    parser.add_argument("--instructions", metavar="TEXT")
    parser.add_argument("--max-iterations", type=int, default=20)
    parser.add_argument("--max-llm-calls", type=int, default=30)
    parser.add_argument(
        "--verify", metavar="COMMAND", help="command that verifies the outputs in the machine"
    )
    parser.add_argument("--max-depth", type=int, default=1, help="levels of branches (default: 1)")
    parser.add_argument("--vm-id", metavar="ID", help="use this machine instead of a new one")
    parser.add_argument("--keep-vm", action="store_true", help="keep the machine afterwards")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _add_runs(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(title="actions", metavar="ACTION", dest="action", required=True)

    def action(name: str, text: str, *, run: bool = True) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        if run:
            sub.add_argument("run", metavar="RUN", help="id of the run, as shown by `runs list`")
        _add_settings(sub, repeated="{}")
        return sub

    action("list", "List all recorded runs, the oldest first.", run=False)
    show = action("show", "Print the outputs of a run that has ended.")
    show.add_argument("--json", action="store_true", help="print the result as JSON")
    action("tree", "Show a run's machines and commits: parents, cost, the winning branch.")
    diff = action("diff", "Show what changed in a run's machine between the ends of two steps.")
    for name in ("a", "b"):
        diff.add_argument(name, type=int, metavar=name.upper(), help="a step; 0 is the start")
    resume = action("resume", "Resume a run, by default from its last checkpoint.")
    resume.add_argument("--step", type=int, metavar="K", help="resume from the end of this step")
    replay = action("replay", "Repeat a run with the recorded replies, without querying a model.")
    replay.add_argument(
        "--from",
        type=int,
        metavar="K",
        dest="live_from",
        help="query a live model (--model) from the end of this step on",
    )
    for sub in (resume, replay):
        sub.add_argument("--instructions", metavar="TEXT", help="replace the run's instructions")
        sub.add_argument("--max-iterations", type=int, help="replace the run's limit")
        sub.add_argument("--json", action="store_true", help="print the result as JSON")
    prune = action("prune", "Delete old runs and their checkpoints.", run=False)
    prune.add_argument("--keep", type=int, default=100, metavar="N", help="keep the latest N")


def _add_machines(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["list", "delete", "diff", "sweep"])
    what = "machines and commits to delete, or two of them to compare"
    parser.add_argument("ids", nargs="*", metavar="ID", help=what)


def read_settings(options: argparse.Namespace) -> Settings:
    """Build the settings from the flags and the environment; flags win.

    Raises:
        SettingsError: A value is invalid.
    """
    given = {name: value for name, value in vars(options).items() if name in Settings.model_fields}
    for name, separator in SEPARATORS.items():
        values = [*getattr(options, f"{name}_before", ()), *given.get(name, ())]
        if values:
            # A directory given by a flag may contain the separator in its name.
            given[name] = tuple(values) if name == "allow_dir" else separator.join(values)
    try:
        return Settings(**given)
    except ValidationError as error:
        problems = [
            f"{flag(name) if name in given else variable(name)}: {e['msg']}"
            for e in error.errors(include_url=False, include_input=False)
            for name in [str(e["loc"][0])]
        ]
        raise SettingsError(
            "; ".join(problems) + ". `vers-rlm-mcp --help` lists all settings."
        ) from None
