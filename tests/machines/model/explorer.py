"""The host's end of `tree_guest`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import anyio
from anyio.streams.buffered import BufferedByteReceiveStream

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tree_model import Listing

    from vers_rlm_mcp.machines import Machine, Process

SECONDS: Final = 60.0
"""How long a few changes may take in a machine: most take milliseconds."""

MAX_ANSWER: Final = 16 * 1024 * 1024
"""Bytes of a listing: some hundred paths of 300 bytes, each told with 500 bytes at most."""

GUEST: Final = Path(__file__).with_name("tree_guest.py").read_text()


class Explorer:
    """A process in a machine that changes and lists trees."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._answers = BufferedByteReceiveStream(process.stdout)

    @classmethod
    async def start(cls, machine: Machine, roots: Sequence[str]) -> Self:
        """Start it, in a directory that no snapshot is interested in."""
        return cls(await machine.spawn(["python3", "-I", "-S", "-c", GUEST, *roots], cwd="/"))

    async def perform(self, changes: Sequence[list[Any]]) -> tuple[list[Any], Listing]:
        """Make changes; returns what came of each, and what there is now."""
        with anyio.fail_after(SECONDS):
            await self._process.stdin.send(json.dumps(changes).encode() + b"\n")
            try:
                outcomes, listing = json.loads(await self._answers.receive_until(b"\n", MAX_ANSWER))
            except anyio.IncompleteRead:
                error = await self._process.stderr.receive()
                raise AssertionError(f"tree_guest has ended: {error.decode()}") from None
        return outcomes, listing

    async def aclose(self) -> None:
        """End the process."""
        await self._process.aclose()
