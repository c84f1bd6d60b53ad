"""What the conversations of one run share: its models, its journal, and how deep it may go."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio

from vers_rlm_mcp import rlm

if TYPE_CHECKING:
    from collections.abc import Callable

    from vers_rlm_mcp.models import Model
    from vers_rlm_mcp.settings import Settings

CONCURRENT_SUB_CALLS = 32
"""Sub-calls of one run that are under way at once: what providers commonly allow one key."""


def _limiter() -> anyio.Semaphore:
    return anyio.Semaphore(CONCURRENT_SUB_CALLS)


@dataclass(frozen=True, slots=True)
class Tree:
    """The run as a whole: its own conversation and all that it starts."""

    run_id: str
    model: Model
    sub_model: Model
    settings: Settings
    publish: Callable[[rlm.Event], None]
    max_depth: int
    """How deep conversations may start others: 0 allows none."""
    sub_calls: anyio.Semaphore = field(default_factory=_limiter)

    def publisher(self, path: str) -> Callable[[rlm.Event], None]:
        """Where a conversation's events go; those of a child bear its path."""
        if not path:
            return self.publish
        return lambda event: self.publish(rlm.InChild(path, event))
