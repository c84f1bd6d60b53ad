"""The command: `python -m benchmarks [SECTION …]`, or `make bench`.

Each section's result replaces the last one in `results/`, from which the README's table is made.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from pydantic import TypeAdapter

from . import engines, readme
from .scenarios import SCENARIOS
from .tables import Section

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent.parent / "README.md"

SECTIONS_TYPE = TypeAdapter(dict[str, Section])

SECTIONS = {
    "machine": "a bubblewrap machine",
    "branches": "sixteen children of a run, on bubblewrap and on the Vers emulator",
    "server": "our MCP server against a bare one",
    "vers": "commands on a Vers machine, against a new ssh for each",
    "engine": "our engine alone",
    "peers": "our engine and its peers, side by side",
}


def main() -> None:
    options = _parser().parse_args()
    wanted = options.sections or ["machine", "branches", "server", "vers", "peers"]
    rounds = 1 if options.quick else None
    measures: Mapping[str, Callable[[], Section]] = {
        "machine": partial(_measure_machine, rounds),
        "branches": partial(_measure_branches, rounds),
        "server": partial(_measure_server, rounds),
        "vers": partial(_measure_vers, rounds),
        "engine": partial(engines.measure, [engines.OURS], rounds=rounds, only=options.only),
        "peers": partial(
            engines.measure, [engines.OURS, *engines.PEERS], rounds=rounds, only=options.only
        ),
    }
    if "peers" in wanted:  # which has our engine in it
        wanted = [name for name in wanted if name != "engine"]
    for name in dict.fromkeys(wanted):
        started = time.monotonic()
        section = measures[name]()
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
        print(section.markdown())
        # A quick pass, a part, or our engine alone says too little to be kept.
        if not (options.quick or options.only or name == "engine"):
            _keep("engines" if name == "peers" else name, section)


def _measure_machine(rounds: int | None) -> Section:
    from . import machine  # noqa: PLC0415 - a pass without it need not wait for it

    return anyio.run(partial(machine.measure, rounds=rounds))


def _measure_branches(rounds: int | None) -> Section:
    from . import branching  # noqa: PLC0415 - a pass without it need not wait for it

    return anyio.run(partial(branching.measure, rounds=rounds))


def _measure_server(rounds: int | None) -> Section:
    from . import server  # noqa: PLC0415 - a pass without it need not wait for it

    return anyio.run(partial(server.measure, rounds=rounds))


def _measure_vers(rounds: int | None) -> Section:
    from . import vers_exec  # noqa: PLC0415 - a pass without it need not wait for it

    return anyio.run(partial(vers_exec.measure, rounds=rounds))


def _parser() -> argparse.ArgumentParser:
    sections = "; ".join(f"{name}: {what}" for name, what in SECTIONS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"Measure, and keep the results. Sections: {sections}. "
        "Without any: machine, branches, server, vers and peers.",
    )
    # Not `choices`, which refuses an empty list.
    parser.add_argument("sections", nargs="*", metavar="SECTION", type=_section)
    parser.add_argument("--quick", action="store_true", help="one round of each; nothing is kept")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        choices=[scenario.name for scenario in SCENARIOS],
        help="a scenario of the engines; may be given several times; nothing is kept",
    )
    return parser


def _section(name: str) -> str:
    if name not in SECTIONS:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(SECTIONS)}")
    return name


def _keep(name: str, section: Section) -> None:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "results.json"
    sections = SECTIONS_TYPE.validate_json(path.read_bytes()) if path.exists() else {}
    sections[name] = section
    path.write_bytes(SECTIONS_TYPE.dump_json(sections, indent=1) + b"\n")
    tables = "\n".join(section.markdown() for section in sections.values())
    (RESULTS / "results.md").write_text(f"# Benchmarks\n\nMade by `make bench`.\n\n{tables}")
    readme.write(README, sections)


if __name__ == "__main__":
    main()
