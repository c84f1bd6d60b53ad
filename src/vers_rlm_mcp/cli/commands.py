"""The commands, their arguments and their help.

A command's module is imported only when the command runs, so that starting the server loads nothing
that the MCP handshake does not need.
"""

from __future__ import annotations

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anyio
import click

from vers_rlm_mcp import __version__

from .logs import start_logging
from .options import has_flag, read_settings, takes_settings, warn_of_unknown_variables

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Literal

    from vers_rlm_mcp.settings import Settings

    Transport = Literal["http", "sse", "stdio"]

DEFAULT_PORT = 8765
LAST_PORT = 65_535

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
SETTINGS_HINT = "Every setting is an option of every command: see `vers-rlm-mcp help settings`."
LIMITS = ("model", "sub_model", "backend", "max_usd", "max_tokens", "max_seconds")

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
quiet = click.option("-q", "--quiet", is_flag=True, help="Print results and errors only.")
verbose = click.option("-v", "--verbose", is_flag=True, help="Log what is being done.")
changes = (
    click.option("--instructions", metavar="TEXT", help="Replace the run's instructions."),
    click.option("--max-iterations", type=int, metavar="N", help="Replace the run's limit."),
)


def with_changes(function: Any) -> Any:
    """Add the options that change a recorded run."""
    for option in reversed(changes):
        function = option(function)
    return function


class InOrder(click.Group):
    """A group whose help lists its commands as they are declared, the everyday ones first."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands."""
        del ctx
        return list(self.commands)


class TakesSignature(click.Command):
    """A command one of whose arguments may begin with an arrow, which is not an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments; white space around a signature means nothing."""
        return super().parse_args(
            ctx, [f" {each}" if each.startswith("->") else each for each in args]
        )


@click.group(
    "vers-rlm-mcp",
    cls=InOrder,
    context_settings=CONTEXT,
    invoke_without_command=True,
    epilog=f"{SETTINGS_HINT} `vers-rlm-mcp COMMAND --help` explains a command.",
)
@click.version_option(__version__, message="%(prog)s %(version)s")
@quiet
@verbose
@takes_settings()
@click.pass_context
def program(context: click.Context, **_: Any) -> None:
    """An MCP server that gives an AI agent a whole machine to think with.

    Without a command it speaks MCP on stdin and stdout.
    """
    if context.invoked_subcommand is None:
        _serve(start(context, server=True), "stdio", "127.0.0.1", DEFAULT_PORT)


@program.command(epilog=SETTINGS_HINT)
@click.option(
    "--transport", type=click.Choice(["http", "sse", "stdio"]), default="http", show_default=True
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, LAST_PORT),
    default=DEFAULT_PORT,
    show_default=True,
    help="Port to listen on; 0 takes a free one.",
)
@takes_settings("token", "token_file", "allowed_hosts", "allowed_origins", "read_only", "toolsets")
@click.pass_context
def serve(context: click.Context, transport: Transport, host: str, port: int, **_: Any) -> None:
    """Serve MCP over HTTP (or stdio)."""
    _serve(start(context, server=True), transport, host, port)


@program.command(
    cls=TakesSignature,
    epilog='Example: vers-rlm-mcp run "log, task -> cause: str" -i log=@access.log -i task="Why?"'
    f"\n\n{SETTINGS_HINT}",
)
@click.argument("signature")
@click.option(
    "-i",
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=VALUE",
    help="An input: text, or JSON if the signature declares another type. NAME=@PATH reads it from "
    "a file, NAME=@- from standard input; NAME=@@… is text that begins with @.",
)
@click.option(
    "-f",
    "--file",
    "files",
    multiple=True,
    metavar="[NAME=]PATH",
    help="A file, a directory or a pattern to copy into the machine, below files/.",
)
@click.option(
    "-o",
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Copy the files that the run hands over here: outputs of type `file`, what is in "
    "/workspace/out, and --output-file.",
)
@click.option(
    "--output-file",
    "output_files",
    multiple=True,
    metavar="PATTERN",
    help="Further files to hand over, such as 'plots/*.png'.",
)
@click.option("--force", is_flag=True, help="Let --out replace files.")
@click.option("--instructions", metavar="TEXT", help="What the model is told besides.")
@click.option("--max-iterations", type=int, default=20, show_default=True, metavar="N")
@click.option("--max-llm-calls", type=int, default=30, show_default=True, metavar="N")
@click.option("--verify", metavar="COMMAND", help="Command that must accept the outputs.")
@click.option(
    "--max-depth", type=int, default=1, show_default=True, metavar="N", help="Levels of branches."
)
@click.option("--vm-id", metavar="ID", help="Use this machine instead of a new one.")
@click.option("--keep-vm", is_flag=True, help="Keep the machine afterwards.")
@as_json
@quiet
@verbose
@takes_settings(*LIMITS)
@click.pass_context
def run(context: click.Context, **options: Any) -> None:
    """Run one task in the terminal, with live progress.

    SIGNATURE names inputs and outputs: "task -> answer".
    """
    from .run_command import run_task

    perform(context, run_task, options, pays=True)


@program.command(epilog=SETTINGS_HINT)
@takes_settings(*LIMITS)
@click.pass_context
def demo(context: click.Context, **options: Any) -> None:
    """Demonstrate vers_rlm on real files in a real machine."""
    from .demo import demonstrate

    perform(context, demonstrate, options)


@program.command(epilog=SETTINGS_HINT)
@takes_settings("backend", "model")
@click.pass_context
def doctor(context: click.Context, **options: Any) -> None:
    """Check that machines and models work, and say how to fix what does not."""
    from .doctor import diagnose

    perform(context, diagnose, options)


@program.group(cls=InOrder, epilog=SETTINGS_HINT)
@takes_settings("state_dir")
def runs(**_: Any) -> None:
    """List, inspect, resume, replay and delete recorded runs.

    RUN is the id of a run or its beginning, or `last`.
    """


@runs.command("list")
@click.option("--state", metavar="STATE", help="Only runs in this state: finished, partial, …")
@click.option("-n", "--limit", type=click.IntRange(1), metavar="N", help="Only the latest N.")
@as_json
@takes_settings("state_dir")
@click.pass_context
def list_runs(context: click.Context, **options: Any) -> None:
    """List recorded runs, the latest first."""
    from .runs_command import list_recorded

    perform(context, list_recorded, options)


@runs.command()
@click.argument("run")
@click.option("--step", type=int, metavar="K", help="Show this step in full.")
@as_json
@takes_settings("state_dir")
@click.pass_context
def show(context: click.Context, **options: Any) -> None:
    """Show a run: its answer, steps and cost."""
    from .runs_command import show_run

    perform(context, show_run, options)


@runs.command()
@click.argument("run")
@click.argument("name", required=False)
@as_json
@takes_settings("state_dir")
@click.pass_context
def outputs(context: click.Context, **options: Any) -> None:
    """Print a run's outputs, or the one called NAME alone."""
    from .runs_command import print_outputs

    perform(context, print_outputs, options)


@runs.command()
@click.argument("run")
@click.option(
    "-o",
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Copy them here.",
)
@click.option("--force", is_flag=True, help="Let --out replace files.")
@as_json
@takes_settings("state_dir")
@click.pass_context
def files(context: click.Context, **options: Any) -> None:
    """List the files that a run handed over, or copy them."""
    from .runs_command import hand_out_files

    perform(context, hand_out_files, options)


@runs.command()
@click.argument("run")
@takes_settings("state_dir")
@click.pass_context
def tree(context: click.Context, **options: Any) -> None:
    """Show a run's machines and commits: parents, cost, the winning branch."""
    from .runs_command import show_tree

    perform(context, show_tree, options)


@runs.command()
@click.argument("run")
@click.argument("a", type=int)
@click.argument("b", type=int)
@takes_settings("state_dir", "backend")
@click.pass_context
def diff(context: click.Context, **options: Any) -> None:
    """Show what changed in a run's machine between steps A and B; 0 is the start."""
    from .runs_command import show_difference

    perform(context, show_difference, options)


@runs.command(epilog=SETTINGS_HINT)
@click.argument("run")
@click.option("--step", type=int, metavar="K", help="Resume from the end of this step.")
@with_changes
@as_json
@quiet
@verbose
@takes_settings(*LIMITS)
@click.pass_context
def resume(context: click.Context, **options: Any) -> None:
    """Resume a run, by default from its last checkpoint."""
    from .runs_command import resume_run

    perform(context, resume_run, options, pays=True)


@runs.command(epilog=SETTINGS_HINT)
@click.argument("run")
@click.option(
    "--from", "live_from", type=int, metavar="K", help="Query a model (--model) after this step."
)
@with_changes
@as_json
@quiet
@verbose
@takes_settings(*LIMITS)
@click.pass_context
def replay(context: click.Context, **options: Any) -> None:
    """Repeat a run with the recorded replies, without querying a model."""
    from .runs_command import replay_run

    perform(context, replay_run, options, pays=True)


@runs.command("delete")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@takes_settings("state_dir", "backend")
@click.pass_context
def delete_runs(context: click.Context, **options: Any) -> None:
    """Delete runs with their checkpoints."""
    from .runs_command import delete_recorded

    perform(context, delete_recorded, options)


@runs.command()
@click.option("--keep", type=int, default=100, show_default=True, metavar="N")
@takes_settings("state_dir", "backend")
@click.pass_context
def prune(context: click.Context, **options: Any) -> None:
    """Delete all but the latest N runs with their checkpoints."""
    from .runs_command import prune_recorded

    perform(context, prune_recorded, options)


@program.group(cls=InOrder, epilog=SETTINGS_HINT)
@takes_settings("state_dir", "backend")
def machines(**_: Any) -> None:
    """List, use, compare and delete machines and commits."""


@machines.command("list")
@as_json
@verbose
@takes_settings("backend")
@click.pass_context
def list_machines(context: click.Context, **options: Any) -> None:
    """List machines and commits."""
    from .machines_command import list_all

    perform(context, list_all, options)


@machines.command("exec", context_settings={"ignore_unknown_options": True})
@click.argument("vm_id", metavar="ID")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--cwd", metavar="PATH", help="Working directory, by default /workspace.")
@takes_settings("exec_timeout")
@click.pass_context
def exec_command(context: click.Context, **options: Any) -> None:
    """Run COMMAND in a machine and exit with its status.

    One word is a shell command; several are a program and its arguments.
    """
    from .machines_command import execute

    perform(context, execute, options)


@machines.command("cp")
@click.argument("source")
@click.argument("target")
@click.option("--force", is_flag=True, help="Replace a file of this computer.")
@takes_settings("backend")
@click.pass_context
def copy_file(context: click.Context, **options: Any) -> None:
    """Copy a file into a machine or out of it; ID:PATH is a file of a machine."""
    from .machines_command import copy

    perform(context, copy, options)


@machines.command("delete")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@takes_settings("backend")
@click.pass_context
def delete_machines(context: click.Context, **options: Any) -> None:
    """Delete machines and commits; `machines list` shows their ids."""
    from .machines_command import delete

    perform(context, delete, options)


@machines.command("diff")
@click.argument("a")
@click.argument("b")
@takes_settings("backend")
@click.pass_context
def diff_machines(context: click.Context, **options: Any) -> None:
    """Show the differences between two machines or commits."""
    from .machines_command import compare

    perform(context, compare, options)


@machines.command()
@verbose
@takes_settings("backend")
@click.pass_context
def sweep(context: click.Context, **options: Any) -> None:
    """Delete what servers that died have left."""
    from .machines_command import sweep_all

    perform(context, sweep_all, options)


@program.group("settings")
def settings_group() -> None:
    """Show the settings in force."""


@settings_group.command("show")
@as_json
@takes_settings()
@click.pass_context
def show_settings(context: click.Context, **options: Any) -> None:
    """Show each setting's value, and where it comes from."""
    from .help_command import show_settings

    show_settings(context, as_json=options["as_json"])


@program.command("help", context_settings={"ignore_unknown_options": True})
@click.argument("topic", nargs=-1)
@click.pass_context
def help_command(context: click.Context, topic: tuple[str, ...]) -> None:
    """Explain a command, `settings` or `exit-codes`."""
    from .help_command import show_help

    show_help(context, topic)


@program.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    For bash: eval "$(vers-rlm-mcp completion bash)"
    """
    from click.shell_completion import get_completion_class

    complete = get_completion_class(shell)
    assert complete
    click.echo(complete(program, {}, "vers-rlm-mcp", "_VERS_RLM_MCP_COMPLETE").source())


def start(context: click.Context, *, server: bool = False) -> Settings:
    """Read the settings and start logging; commands other than the server log only warnings."""
    settings = read_settings(context)
    warn_of_unknown_variables()
    if not server and "log_level" not in settings.model_fields_set:
        level = "info" if has_flag(context, "verbose") else "warning"
        settings = settings.model_copy(update={"log_level": level})
    start_logging(settings)
    return settings


def perform(
    context: click.Context,
    command: Callable[[Settings, SimpleNamespace], Awaitable[int | None]],
    options: dict[str, Any],
    *,
    pays: bool = False,
) -> None:
    """Run a command to its end and exit with its code.

    One that `pays` for what it does outlives its terminal.
    """
    if pays and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        # Unlike SIG_IGN, the programs that it starts do not inherit this.
        signal.signal(signal.SIGHUP, lambda _number, _frame: None)
    settings = start(context)
    options |= {"quiet": has_flag(context, "quiet")}
    context.exit(anyio.run(command, settings, SimpleNamespace(**options)) or 0)


def _serve(settings: Settings, transport: Transport, host: str, port: int) -> None:
    from vers_rlm_mcp.server import exporting, serve_http, serve_stdio

    async def serve() -> None:
        if transport == "stdio":
            await serve_stdio(settings)
        else:
            await serve_http(settings, transport=transport, host=host, port=port)

    with exporting():
        anyio.run(serve)
