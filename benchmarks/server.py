"""What our MCP server costs over a bare one of the same SDK: both over stdio, in turn."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median

from mcp import Client, StdioServerParameters

from .tables import TIMES, Section, computer

ROUNDS = 15
CALLS = 100
MAX_RATIO = 1.15
MAX_TOKENS = 3000
OURS, BARE = "vers-rlm-mcp", "bare server"
_SERVERS = {
    OURS: (Path(sys.executable).with_name("vers-rlm-mcp"), "currentVmId"),
    BARE: (Path(__file__).parent / "adapters" / "bare_server.py", "nothing"),
}
"""The program of each, and a tool of it."""


async def measure(*, rounds: int | None = None) -> Section:
    """Spawn both servers, and call a tool of each that does nothing."""
    notes = [
        f"Both with mcp {version('mcp')}, over stdio, by the SDK's own client.",
        f"The tool is `currentVmId`, which makes no machine; the median of {CALLS} calls a round.",
    ]
    section = Section("MCP server", [OURS, BARE], computer(), notes=notes)
    for _ in range(rounds or ROUNDS):
        for column in section.columns:
            await _session(section, column)
    _goals(section)
    return section


async def _session(section: Section, column: str) -> None:
    program, tool = _SERVERS[column]
    with tempfile.TemporaryDirectory(prefix="vers-rlm-bench-") as state:
        settings = {"BACKEND": "bubblewrap", "STATE_DIR": state, "LOG_LEVEL": "warning"}
        environment = {**os.environ, **{f"VERS_RLM_{name}": settings[name] for name in settings}}
        parameters = StdioServerParameters(
            command=sys.executable, args=[str(program)], env=environment
        )
        started = time.perf_counter()
        async with Client(parameters, mode="legacy") as client:
            spawned = time.perf_counter() - started
            calls: list[float] = []
            for _ in range(CALLS):
                started = time.perf_counter()
                result = await client.call_tool(tool, {})
                calls.append(time.perf_counter() - started)
                assert not result.is_error, result
            tools = await client.list_tools()
    listed = [
        tool.model_dump(mode="json", by_alias=True, exclude_none=True) for tool in tools.tools
    ]
    as_sent = json.dumps(listed, separators=(",", ":"), ensure_ascii=False).encode()
    for what, unit, value in (
        ("spawn to `initialize`", "ms", spawned * 1000),
        ("round trip of a tool that does nothing", "ms", median(calls) * 1000),
        ("`tools/list`", "tokens (bytes / 4)", len(as_sent) / 4),
    ):
        section.cell(what, unit, column).values.append(value)


def _goals(section: Section) -> None:
    """The goals: a ratio to the bare server of the same round, and a number of tokens."""
    spawn, _, tools = section.rows
    tools.goal = MAX_TOKENS
    ours, bare = spawn.cells[OURS].values, spawn.cells[BARE].values
    ratio = partial(section.cell, "spawn to `initialize`, against a bare server's", TIMES)
    ratio(OURS, MAX_RATIO).values = [one / other for one, other in zip(ours, bare, strict=True)]
    ratio(BARE).values = [1]
