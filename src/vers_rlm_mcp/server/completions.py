"""Values for the arguments of prompts and resources, while a user types them."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from mcp_types import Completion

from vers_rlm_mcp.errors import VersRlmError

if TYPE_CHECKING:
    from mcp_types import (
        CompletionArgument,
        CompletionContext,
        PromptReference,
        ResourceTemplateReference,
    )

logger = logging.getLogger(__name__)

Source = Callable[[Mapping[str, str]], Awaitable[Sequence[str]]]
"""All values of an argument that the caller may use, the best first, given the other arguments."""

MAX_VALUES = 100
"""Values in one answer, as the protocol limits it."""


class Completions:
    """Completes an argument by its name, wherever it occurs.

    Args:
        sources: Sources of values, by the names of arguments.
    """

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self._sources = sources

    async def __call__(
        self,
        _: PromptReference | ResourceTemplateReference,
        argument: CompletionArgument,
        given: CompletionContext | None,
    ) -> Completion:
        """The values that begin with what was typed; none for a free-text argument."""
        source = self._sources.get(argument.name)
        try:
            values = await source((given and given.arguments) or {}) if source else ()
        except (VersRlmError, KeyError) as error:
            # No error while someone is typing: the call that follows reports it.
            logger.info("There are no values for %s: %s", argument.name, error)
            values = ()
        found = [value for value in values if value.startswith(argument.value)]
        return Completion(
            values=found[:MAX_VALUES], total=len(found), has_more=len(found) > MAX_VALUES
        )
