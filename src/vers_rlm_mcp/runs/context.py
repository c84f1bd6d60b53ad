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
"""Sub-calls of one run in flight at once, unless models are allowed more."""


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
    sub_calls: anyio.Semaphore = field(init=False)
    """Limits the sub-calls in flight."""

    def __post_init__(self) -> None:
        """Allow sub-calls what an endpoint may be allowed; models wait where it allows less."""
        most = max(CONCURRENT_SUB_CALLS, self.settings.max_model_calls)
        object.__setattr__(self, "sub_calls", anyio.Semaphore(most))

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
