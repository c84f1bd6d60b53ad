"""Where the replies of models come from in a run: from a journal, or from the models."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING

from vers_rlm_mcp import rlm
from vers_rlm_mcp.errors import ModelFailed
from vers_rlm_mcp.models import Model
from vers_rlm_mcp.values import Completion, Message

from .past import Past

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .exchange import Exchange


BEGINNING = 300
"""Characters of a reply that an error quotes."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply, and where it comes from."""

    completion: Completion
    request: str
    """The fingerprint of the request."""
    recorded: bool
    exchange: str = ""
    """The same of its `Exchange`, if it belongs to a conversation."""


class Replies:
    """Asks the models of a run, except for what is on record.

    Args:
        model: The root model.
        sub_model: The model of sub-calls.
        past: What is on record of this run, or of the one that it replays.
    """

    def __init__(self, model: Model, sub_model: Model, past: Past | None = None) -> None:
        self.model = model
        self.sub_model = sub_model
        self.past = past or Past()

    async def ask_model(
        self, asked: rlm.CallModel, path: str, exchanges: Sequence[Exchange], max_tokens: int
    ) -> Answer:
        """Reply to the conversation with this path. Raises `ModelError`.

        `exchanges` are what was said in it so far, in each way that a journal may know it.
        """
        del path  # the same for all
        return await self._ask_model(asked, exchanges, max_tokens)

    async def ask_sub_model(self, prompt: str, max_tokens: int) -> Answer:
        """Reply to a sub-call. Raises `ModelError`."""
        messages = [Message("user", prompt)]
        request = rlm.fingerprint(messages, self.sub_model.name)
        return await self._ask(self.sub_model, messages, [request], max_tokens)

    async def _ask_model(
        self,
        asked: rlm.CallModel,
        exchanges: Sequence[Exchange],
        max_tokens: int,
        otherwise: Completion | None = None,
    ) -> Answer:
        known_as = [each.fingerprint(self.model.name) for each in exchanges]
        answer = await self._ask(self.model, asked.messages, known_as, max_tokens, otherwise)
        return replace(answer, exchange=known_as[0])

    async def _ask(
        self,
        model: Model,
        messages: Sequence[Message],
        known_as: Sequence[str],
        max_tokens: int,
        otherwise: Completion | None = None,
    ) -> Answer:
        request = rlm.fingerprint(messages, model.name)
        if known := self.past.take(*known_as) or otherwise:
            return Answer(known, request, recorded=True)
        completion = await model.complete(messages, max_tokens=max_tokens)
        return Answer(completion, request, recorded=False)


class ReplayedReplies(Replies):
    """Replies of a recorded run: by step to its own conversation, else by request.

    Args:
        past: The recorded run.
        live: The model and sub-model to ask instead from some step on. None for never.
        live_from: That step.
    """

    def __init__(self, past: Past, live: tuple[Model, Model] | None, live_from: int) -> None:
        super().__init__(Recorded(past.model), Recorded(past.sub_model), past)
        self._live = live
        self._live_from = live_from if live else inf

    async def ask_model(
        self, asked: rlm.CallModel, path: str, exchanges: Sequence[Exchange], max_tokens: int
    ) -> Answer:
        """Reply to the conversation with this path. Raises `ModelError`."""
        if path:
            return await super().ask_model(asked, path, exchanges, max_tokens)
        if asked.step < self._live_from:
            by_step = self.past.said.get((asked.step, asked.purpose))
            return await self._ask_model(asked, exchanges, max_tokens, by_step)
        if self._live:
            # From here it is another run, where the same request may get another reply.
            (self.model, self.sub_model), self._live = self._live, None
            self.past = Past()
        return await super().ask_model(asked, path, exchanges, max_tokens)


class Recorded(Model):
    """Stands for a model that is not asked in a replay: whatever is not on record fails."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def complete(
        self,
        messages: Sequence[Message],  # noqa: ARG002 - no model is asked, whatever they are
        *,
        max_tokens: int | None = None,  # noqa: ARG002
    ) -> Completion:
        """Raise `ModelFailed`."""
        raise ModelFailed(f"This is not on record, and {self.name} is not asked in a replay.")

    async def aclose(self) -> None:
        """There is nothing to close."""


def is_empty(reply: Completion) -> bool:
    """Whether a model has ended its reply without saying anything."""
    return reply.stop_reason == "end" and not reply.text.strip()


def problem_with(reply: Completion) -> str | None:
    """Why a sub-model's reply is no answer to hand over; None if it is one."""
    said = reply.text.strip()
    begins = f" It begins: {said[:BEGINNING]}" if said else ""
    match reply.stop_reason:
        case "length":
            return (
                "The sub-model's reply was cut off at its limit of length. Ask for a shorter "
                f"answer, or about less text.{begins}"
            )
        case "refusal":
            return f"The sub-model refused to answer. Ask in another way.{begins}"
        case "unknown":
            return (
                "The sub-model's reply ended for a reason that is not known, so it may be "
                f"incomplete. Ask again.{begins}"
            )
        case _ if not said:
            thoughts = " but thoughts" if reply.thoughts else ""
            return f"The sub-model's reply held nothing{thoughts}. Ask in another way."
        case _:
            return None
