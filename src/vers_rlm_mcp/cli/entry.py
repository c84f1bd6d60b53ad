"""The entry point: signals, settings, logging, exit codes.

A command's module is imported only when the command runs, so that starting the server loads nothing
that the MCP handshake does not need.
"""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, NoReturn, cast

import anyio

from vers_rlm_mcp.errors import UsageError, VersRlmError

from .arguments import create_parser, read_settings
from .logs import start_logging
from .streams import protect

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from io import TextIOWrapper

    from vers_rlm_mcp.settings import Settings

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
"""The exit code that a shell reports for a program ended by Ctrl-C."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit with its status."""
    output = protect()
    options = create_parser().parse_args(argv)
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
        signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup ignores SIGHUP
        # A run outlives its terminal. Unlike SIG_IGN, the programs it starts do not inherit this.
        signal.signal(signal.SIGHUP, _continue if _performs_run(options) else _interrupt)
    # Results are printed whatever they contain, including characters that the locale lacks.
    cast("TextIOWrapper", output).reconfigure(errors="backslashreplace")
    try:
        settings = read_settings(options)
        start_logging(settings)
        status = _run_command(options, settings)
    except VersRlmError as error:
        print(f"vers-rlm-mcp: {error}", file=sys.stderr)
        status = EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED
    except KeyboardInterrupt:
        status = EXIT_INTERRUPTED
    output.flush()
    if output.problem:
        _report_lost_output(options, output.problem)
        status = status or EXIT_FAILED
    sys.exit(status)


def _performs_run(options: argparse.Namespace) -> bool:
    """Whether the command performs a run, which costs money."""
    return options.command == "run" or getattr(options, "action", "") in ("resume", "replay")


def _report_lost_output(options: argparse.Namespace, problem: Exception) -> None:
    if _performs_run(options):
        print(
            f"vers-rlm-mcp: The outputs could not be written ({problem}). They stay on record: "
            "`vers-rlm-mcp runs show RUN` prints them.",
            file=sys.stderr,
        )
    elif not isinstance(problem, BrokenPipeError):  # as of `| head`, which has seen enough
        print(f"vers-rlm-mcp: The output could not be written ({problem}).", file=sys.stderr)


def _continue(number: int, _: object) -> None:
    """Ignore a signal."""


def _interrupt(number: int, _: object) -> None:
    """Turn SIGTERM or SIGHUP into Ctrl-C: the command's task is cancelled and cleans up.

    A second one is ignored, since the clean-up has its own time limit; Ctrl-C still interrupts it.
    """
    signal.signal(number, signal.SIG_IGN)
    signal.raise_signal(signal.SIGINT)


def _run_command(options: argparse.Namespace, settings: Settings) -> int:
    match options.command:
        case "run":
            from .run_command import run_task

            return anyio.run(run_task, options, settings)
        case "demo":
            from .demo import demonstrate

            return anyio.run(demonstrate, settings)
        case "doctor":
            from .doctor import diagnose

            return anyio.run(diagnose, settings)
        case "runs":
            from .runs_command import manage_runs

            return anyio.run(manage_runs, options, settings)
        case "machines":
            from .machines_command import manage_machines

            return anyio.run(manage_machines, options, settings)
        case _:
            return _serve(options, settings)


def _serve(options: argparse.Namespace, settings: Settings) -> int:
    from vers_rlm_mcp.server import exporting, serve_http, serve_stdio

    async def serve() -> None:
        if options.transport == "stdio":
            await serve_stdio(settings)
        else:
            await serve_http(
                settings, transport=options.transport, host=options.host, port=options.port
            )

    with exporting():
        anyio.run(serve)
    return 0
