"""Runs the suite: `python -m conformance [SCENARIO …]`, all that each revision requires or some.

Needs Node 24 in this environment and the suite in `node_modules`: `make conformance` sees to
both. Ends with 0 when nothing fails but what is expected to, and all of that does.
"""

from __future__ import annotations

import logging
import signal
import sys
import sysconfig
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from vers_rlm_mcp.server import create_server, serve_http
from vers_rlm_mcp.settings import Settings

from . import documents, jobs, rounds, tools

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer

HERE = Path(__file__).parent

MODULES = HERE.parents[1] / "node_modules"

SUITE = [
    str(Path(sysconfig.get_path("scripts"), "node")),
    str(MODULES / "@modelcontextprotocol/conformance/dist/index.js"),
    "server",
]

SUMMARY = "=== SUMMARY ==="

EXPECTED = str(HERE / "expected.yaml")

REVISIONS = ("2025-11-25", "2026-07-28")


def everything(*args: Any, **kwargs: Any) -> MCPServer[Any]:
    """The server that everybody gets, with what the suite looks for."""
    made = jobs.Jobs()
    server = create_server(*args, **kwargs, tasks=[made])
    for part in (tools, rounds, documents, made):
        part.mount(server)
    return server


async def main(scenarios: list[str]) -> bool:
    """Serve, and run the suite; whether all is as expected."""
    with tempfile.TemporaryDirectory() as directory:
        serve = partial(
            serve_http,
            Settings.model_validate({"state_dir": Path(directory), "backend": "bubblewrap"}),
            make_server=everything,
        )
        as_expected: list[bool] = []
        async with anyio.create_task_group() as tasks:
            url = await tasks.start(serve)
            as_expected = [await suite("--url", url, *options) for options in runs(scenarios)]
            signal.raise_signal(signal.SIGTERM)
    return all(as_expected)


def runs(scenarios: list[str]) -> list[list[str]]:
    """The options of each run of the suite."""
    if scenarios:
        return [
            ["--scenario", scenario, "--spec-version", revision, "--verbose"]
            for scenario in scenarios
            for revision in REVISIONS
        ]
    # A revision's own run does not judge what it does not require, such as tasks: the last does.
    wanted = [["--requirements", revision] for revision in REVISIONS] + [["--suite", "pending"]]
    return [[*options, "--expected-failures", EXPECTED] for options in wanted]


async def suite(*options: str) -> bool:
    """Run the suite once, and show its summary, or all it says if something is not as expected."""
    finished = await anyio.run_process([*SUITE, *options], stderr=None, check=False)
    as_expected = finished.returncode == 0
    said = finished.stdout.decode()
    print(said.partition(SUMMARY)[2].lstrip() if as_expected and SUMMARY in said else said)
    return as_expected


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    sys.exit(not anyio.run(main, sys.argv[1:]))
