"""The entry point: signals, errors, exit codes."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, NoReturn, cast

import click

from vers_rlm_mcp.errors import UsageError, VersRlmError

from .commands import program
from .exit_codes import EXIT_FAILED, EXIT_USAGE
from .streams import protect

if TYPE_CHECKING:
    from collections.abc import Sequence
    from io import TextIOWrapper

_received: list[int] = []
"""The signals that ended the command, the first one first."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit with its status."""
    output = protect()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, _interrupt)
    # Results are printed whatever they contain, including characters that the locale lacks.
    cast("TextIOWrapper", output).reconfigure(errors="backslashreplace")
    status = _run(argv)
    output.flush()
    if output.problem:
        status = status or EXIT_FAILED
        if not isinstance(output.problem, BrokenPipeError):  # as of `| head`, which has seen enough
            _print_error(f"The output could not be written ({output.problem}).")
    sys.exit(status)


def _run(argv: Sequence[str] | None) -> int:
    try:
        status = program.main(argv, "vers-rlm-mcp", standalone_mode=False)
    except (click.Abort, KeyboardInterrupt):  # the first is click's form of the second
        # As a shell reports a program that a signal ended.
        return 128 + (_received or [signal.SIGINT])[0]
    except click.ClickException as error:
        context = cast("click.Context | None", getattr(error, "ctx", None))
        hint = f" See `{context.command_path} --help`." if context else ""
        _print_error(error.format_message() + hint)
        return EXIT_USAGE
    except VersRlmError as error:
        _print_error(str(error))
        return EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED
    return status if isinstance(status, int) else 0


def _print_error(text: str) -> None:
    print(f"vers-rlm-mcp: {text}", file=sys.stderr)


def _interrupt(number: int, _: object) -> None:
    """Turn SIGTERM or SIGHUP into Ctrl-C: the command's task is cancelled and cleans up.

    A second one is ignored, since the clean-up has its own time limit; Ctrl-C still interrupts it.
    """
    signal.signal(number, signal.SIG_IGN)
    _received.append(number)
    signal.raise_signal(signal.SIGINT)
