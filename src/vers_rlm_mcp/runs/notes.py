"""Sentences for the model on variables that are lost or were left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vers_rlm_mcp.kernel import Carried
    from vers_rlm_mcp.values import CellResult

MAX_LISTED = 50
"""Variables named in one sentence: thousands would bury what else there is to say."""


def not_carried(carried: Carried | None, where: str = "the copy") -> Sequence[str]:
    """Sentences on variables that a copy of a machine does not have."""
    if carried is None or not carried.lost:
        return ()
    named = listed([f"{name} ({reason})" for name, reason in carried.lost.items()], "; ")
    return (f"A kernel started in {where} will not have these variables: {named}.",)


def lost_variables(result: CellResult) -> Sequence[str]:
    """Sentences on variables that are lost because the kernel had to be restarted."""
    if not result.lost:
        return ()
    return (f"These variables are lost: {listed(result.lost, ', ')}. Files are still there.",)


def listed(items: Sequence[str], between: str) -> str:
    """The first of them, and how many more there are."""
    more = len(items) - MAX_LISTED
    return between.join([*items[:MAX_LISTED], *([f"and {more} more"] if more > 0 else ())])
