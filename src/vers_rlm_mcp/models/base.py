"""What a language model is to this project: messages in, text and usage out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vers_rlm_mcp.messages import Message, Usage

StopReason = Literal["end", "length", "refusal"]


@dataclass(frozen=True, slots=True)
class Completion:
    """One reply of a model."""

    text: str
    usage: Usage
    stop_reason: StopReason = "end"


class Model(ABC):
    """A model at a provider. Safe for concurrent use by many tasks."""

    name: str
    """As a user writes it: ``provider:model``."""

    @abstractmethod
    async def complete(
        self, messages: Sequence[Message], *, max_tokens: int | None = None
    ) -> Completion:
        """Ask for a reply to `messages`.

        Passing faults (429, 5xx, overload, dropped connections) are retried with backoff; the
        caller bounds the whole with a cancel scope. Raises `ModelUnavailable` when the user has
        to change something and `ModelFailed` for everything else; nothing of the provider's SDK
        gets out.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Close the provider's connections."""
