"""A model for tests that speaks for a whole tree of conversations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lab import Speaker, cell

from vers_rlm_mcp.values import Completion, Message, Usage

if TYPE_CHECKING:
    from collections.abc import Sequence


class Family(Speaker):
    """Speaks for a whole tree. A conversation whose opening, its plan or its task, says ``like X``
    gets the replies of X in turn; the others get those of the run's own conversation."""

    def __init__(self, *own: str, **others: Sequence[str]) -> None:
        super().__init__(self._next, "family:test")
        self._own = own
        self._others = others

    async def _next(self, messages: Sequence[Message]) -> Completion:
        return Completion(self.reply(messages), Usage(10, 1))

    def reply(self, messages: Sequence[Message]) -> str:
        """What is said next in this conversation."""
        branched = [place for place, each in enumerate(messages) if "# Branch " in each.content]
        place = branched[-1] if branched and branched[-1] > 0 else 1
        opening = messages[place].content
        said = sum(message.role == "assistant" for message in messages[place:])
        replies = next((r for x, r in self._others.items() if f"like {x}." in opening), self._own)
        return replies[said] if said < len(replies) else "I have nothing to add."


def branching(arguments: str, *after: str, before: str = "") -> list[str]:
    """The steps of a run that branches."""
    return [cell(f"{before}\nresults = branches({arguments})"), *map(cell, after)]
