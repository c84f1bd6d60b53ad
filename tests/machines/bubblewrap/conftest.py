from __future__ import annotations

from typing import Protocol

import pytest

from vers_rlm_mcp.machines import Machine, run_command

SECONDS = 30.0


class Shell(Protocol):
    async def __call__(self, machine: Machine, script: str) -> str: ...


@pytest.fixture
def sh() -> Shell:
    """Runs a shell script and returns all that it writes, errors included."""

    async def run(machine: Machine, script: str) -> str:
        argv = ["sh", "-c", script]
        result = await run_command(machine, argv, timeout=SECONDS, limit=1 << 20)
        assert result.status is not None, f"{script!r} did not end"
        return result.stdout.text + result.stderr.text

    return run
