"""The interface of a language model: messages in, text and usage out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from functools import wraps
from typing import TYPE_CHECKING, Any

from .thoughts import separate_thoughts

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from vers_rlm_mcp.values import Completion, Message

    from .prices import Price


class Model(ABC):
    """A model of a provider. Safe for concurrent use by many tasks.

    Whatever the class, thoughts in the text of a reply are moved to `Completion.thoughts`.
    """

    name: str
    """The name as a user writes it: ``provider:model``."""

    price: Price | None = None
    """What the provider charges. If None, the price is unknown and so is `usd` of every usage."""

    def __init_subclass__(cls) -> None:
        """Wrap `complete`: it is the only way by which replies leave a model."""
        super().__init_subclass__()
        if "complete" in cls.__dict__:
            setattr(cls, "complete", _without_thoughts(cls.complete))  # noqa: B010 - for pyright

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


def _without_thoughts(
    complete: Callable[..., Awaitable[Completion]],
) -> Callable[..., Awaitable[Completion]]:
    @wraps(complete)
    async def wrapped(self: Model, messages: Sequence[Message], **options: Any) -> Completion:
        completion = await complete(self, messages, **options)
        question = messages[0].content if len(messages) == 1 else None
        text, thoughts = separate_thoughts(completion.text, question)
        both = "\n\n".join(filter(None, (completion.thoughts, thoughts)))
        return replace(completion, text=text, thoughts=both)

    return wrapped
