"""What a program of ours, or one in its place, writes to standard error: its end is kept."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final

import anyio

if TYPE_CHECKING:
    from anyio.abc import ByteReceiveStream

MAX_COMPLAINT: Final = 4096
"""Bytes that are kept."""


class Complaint:
    """The end of what was written so far."""

    def __init__(self) -> None:
        self._kept = b""

    @property
    def text(self) -> str:
        """What was kept."""
        return self._kept.decode(errors="replace").strip()

    def add(self, data: bytes) -> None:
        """Append what was written."""
        self._kept = (self._kept + data)[-MAX_COMPLAINT:]

    async def read(self, stream: ByteReceiveStream, most: float = inf) -> None:
        """Take what a stream carries until it ends or breaks, or has carried `most` bytes."""
        try:
            while most > 0:
                data = await stream.receive()
                self.add(data)
                most -= len(data)
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            return
