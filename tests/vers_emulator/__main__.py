"""Runs the emulator by itself: prints what a client needs as one line of JSON, and serves.

To point the server at it, set the variables that are printed to standard error as well.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
from dataclasses import replace
from pathlib import Path

import anyio

from . import NOTICE, Options, VersEmulator


async def serve(state: Path | None, options: Options) -> None:
    """Serve until a signal to stop comes."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async with VersEmulator(state, options) as emulator:
            facts = emulator.facts()
            print(json.dumps(facts), flush=True)
            for name, value in facts["environment"].items():
                print(f"export {name}={value}", file=sys.stderr)
            async for _ in signals:
                return


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m vers_emulator", description=__doc__, epilog=NOTICE
    )
    parser.add_argument(
        "--state", type=Path, help="directory for the machines; else a temporary one"
    )
    parser.add_argument("--older", action="store_true", help="be the service of before May 2026")
    parser.add_argument("--http-port", type=int, default=0)
    parser.add_argument("--ssh-port", type=int, default=0)
    parser.add_argument(
        "--fork-kernels",
        action="store_true",
        help="let variables of kernels go into copies, pickled: no copy of memory, but like one",
    )
    arguments = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    published = Options.older() if arguments.older else Options()
    options = replace(
        published,
        http_port=arguments.http_port,
        ssh_port=arguments.ssh_port,
        fork_kernels=arguments.fork_kernels,
    )
    print(NOTICE, file=sys.stderr)
    anyio.run(serve, arguments.state, options)


if __name__ == "__main__":
    main()
