"""What a language model is to this project: messages in, text and usage out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vers_rlm_mcp.values import Completion, Message

    from .prices import Price


class Model(ABC):
    """A model at a provider. Safe for concurrent use by many tasks."""

    name: str
    """As a user writes it: ``provider:model``."""

    price: Price | None = None
    """What the provider charges; None when not known, and then `usd` of every usage is None."""

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

    async def warm(self) -> None:  # noqa: B027 - most models have nothing to get ready
        """Get ready what the first `complete` would have to wait for. Never needed."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close the provider's connections."""
