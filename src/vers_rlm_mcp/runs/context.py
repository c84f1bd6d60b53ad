"""What the conversations of one run share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio

from .events import InChild

if TYPE_CHECKING:
    from collections.abc import Callable

    from vers_rlm_mcp.machines import Fleet
    from vers_rlm_mcp.rlm import Event
    from vers_rlm_mcp.settings import Settings
    from vers_rlm_mcp.store import Journal

    from .reply_source import Replies
    from .request import RunRequest

CONCURRENT_SUB_CALLS = 32
"""Sub-calls of one run in flight at once: what providers commonly allow one key."""


def _sub_calls() -> anyio.Semaphore:
    return anyio.Semaphore(CONCURRENT_SUB_CALLS)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """A run: what it was asked for, and what its conversations work with."""

    request: RunRequest
    fleet: Fleet
    settings: Settings
    replies: Replies
    journal: Journal
    on_event: Callable[[Event], None]
    """Called with each event once it is in the journal. Must not block."""
    sub_calls: anyio.Semaphore = field(default_factory=_sub_calls)

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self.journal.run_id

    def publish(self, event: Event, path: str = "") -> None:
        """Publish an event of the conversation with this path, into the journal first."""
        if path:
            event = InChild(path, event)
        self.journal.append(event.to_json())
        self.on_event(event)
