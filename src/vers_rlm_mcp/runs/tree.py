"""What the conversations of one run share: models, what is on record, and how deep they may go."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio

from vers_rlm_mcp import rlm
from vers_rlm_mcp.errors import ModelFailed
from vers_rlm_mcp.models import Model
from vers_rlm_mcp.values import Completion, Message

from . import events
from .past import Past

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vers_rlm_mcp.settings import Settings

CONCURRENT_SUB_CALLS = 32
"""Sub-calls of one run that are under way at once: what providers commonly allow one key."""


def _limiter() -> anyio.Semaphore:
    return anyio.Semaphore(CONCURRENT_SUB_CALLS)


class OnRecord(Model):
    """Stands for a model that is not to be asked: all its replies are on record."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def complete(
        self,
        messages: Sequence[Message],  # noqa: ARG002 - whatever they are, nobody is asked
        *,
        max_tokens: int | None = None,  # noqa: ARG002
    ) -> Completion:
        """Raise `ModelFailed`."""
        raise ModelFailed(f"This is not on record, and {self.name} is not asked in a replay.")

    async def aclose(self) -> None:
        """There is nothing to close."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply, and where it comes from."""

    completion: Completion
    request: str
    """The fingerprint of what was asked."""
    recorded: bool


@dataclass(slots=True)
class Tree:
    """The run as a whole: its own conversation and all that it starts."""

    run_id: str
    model: Model
    sub_model: Model
    settings: Settings
    publish: Callable[[rlm.Event], None]
    max_depth: int
    """How deep conversations may start others: 0 allows none."""
    past: Past = field(default_factory=Past)
    """What is on record of this run, or of the one that it replays."""
    live: tuple[Model, Model] | None = None
    """In a replay, who takes over as model and sub-model in the end."""
    live_from: float = 0
    """In a replay, the step from which they do; before, replies are taken by their place."""
    sub_calls: anyio.Semaphore = field(default_factory=_limiter)

    async def ask(self, asked: rlm.CallModel, path: str) -> Answer:
        """Ask the model what a conversation asks it. Raises `ModelError`."""
        by_place = None
        if not path:
            if asked.step < self.live_from:
                by_place = self.past.said.get((asked.step, asked.purpose))
            elif self.live:
                # From here on it is a run of its own, which may say other things to the same.
                (self.model, self.sub_model), self.live = self.live, None
                self.past = Past()
        return await self._ask(self.model, asked.messages, by_place)

    async def ask_sub_model(self, prompt: str) -> Answer:
        """Ask the sub-model. Raises `ModelError`."""
        return await self._ask(self.sub_model, [Message("user", prompt)])

    async def _ask(
        self, model: Model, messages: Sequence[Message], by_place: Completion | None = None
    ) -> Answer:
        request = rlm.fingerprint(messages, model.name)
        if known := self.past.take(request) or by_place:
            return Answer(known, request, recorded=True)
        return Answer(await model.complete(messages), request, recorded=False)

    def publisher(self, path: str) -> Callable[[rlm.Event], None]:
        """Where a conversation's events go; those of a child bear its path."""
        if not path:
            return self.publish
        return lambda event: self.publish(events.InChild(path, event))
