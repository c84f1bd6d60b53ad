"""Checks the limits that the kernel does not enforce, while PID 1 serves its host."""

from __future__ import annotations

import time

from .disk import DiskLimit
from .memory import MemoryLimit

NEVER = -1

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .overlays import Overlay


class Watch:
    """Checks memory and disk periodically. A limit of 0 is not checked."""

    def __init__(self, memory: int, disk: int, overlays: list[Overlay]) -> None:
        self.disk = DiskLimit(disk, overlays)
        self._memory = MemoryLimit(memory)
        self._limits = [
            limit for limit, most in ((self._memory, memory), (self.disk, disk)) if most
        ]

    @property
    def interval(self) -> int:
        """Milliseconds until the next check is due."""
        if not self._limits:
            return NEVER
        due = min(limit.due for limit in self._limits)
        return max(0, int((due - time.monotonic()) * 1000) + 1)

    def look(self) -> None:
        """Perform the checks that are due. An error ends only this round of them."""
        for limit in self._limits:
            now = time.monotonic()
            try:
                if now >= limit.due:
                    limit.check(now)
            except OSError:  # No process or descriptor is left, which must not end PID 1.
                limit.put_off(now)

    def notice_since(self, start: int) -> str:
        """What was last done to programs after `start`, by the monotonic clock in nanoseconds."""
        notices = [limit.notice for limit in self._limits]
        return max(((each.at, each.text) for each in notices if each.at > start), default=(0, ""))[
            1
        ]
