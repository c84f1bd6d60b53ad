"""The host's end of `forest`, and what tests of differences have in common."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vers_rlm_mcp.machines import run_command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vers_rlm_mcp.machines import Machine

    Pair = tuple[Machine, Machine]

TREE: Final = "/workspace/tree"
SECONDS: Final = 60.0
FOREST: Final = Path(__file__).with_name("forest.py").read_text()

Listing = dict[str, list[Any]]
"""Kind, mode, and digest or target of each path."""


async def grow(machine: Machine, seed: int, count: int, tree: str = TREE) -> Listing:
    """Change a tree at random, and tell what it holds then."""
    return json.loads(await done(machine, "python3", "-c", FOREST, tree, str(seed), str(count)))


async def listing(machine: Machine, tree: str = TREE) -> Listing:
    """What a tree holds."""
    return json.loads(await done(machine, "python3", "-c", FOREST, tree))


async def sh(machine: Machine, script: str) -> str:
    """The output of a shell script, which must succeed."""
    return await done(machine, "sh", "-ec", script)


async def done(machine: Machine, *argv: str) -> str:
    result = await run_command(machine, argv, timeout=SECONDS, limit=16 << 20)
    assert result.status, "it did not end"
    assert result.status.ok, result.stderr.text
    return result.stdout.text


def below(tree: Listing, path: str) -> Sequence[str]:
    return [other for other in tree if other.startswith(f"{path}/")]
