"""The interface of a language model: messages in, text and usage out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vers_rlm_mcp.values import Completion, Message

    from .prices import Price


class Model(ABC):
    """A model of a provider. Safe for concurrent use by many tasks."""

    name: str
    """The name as a user writes it: ``provider:model``."""

    price: Price | None = None
    """What the provider charges. If None, the price is unknown and so is `usd` of every usage."""

    @abstractmethod
    async def complete(
        self, messages: Sequence[Message], *, max_tokens: int | None = None
    ) -> Completion:
        """Request a reply to `messages`.

        Transient faults (429, 5xx, overload, dropped connections) are retried with backoff; the
        caller limits the total time with a cancel scope.

        Raises:
            ModelUnavailable: The user must change something, such as the key.
            ModelFailed: The provider failed, even after retries.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Close the provider's connections."""
