"""The error for an unknown machine, commit or run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vers_rlm_mcp.errors import UnknownHandle

if TYPE_CHECKING:
    from collections.abc import Sequence

NAMED_HANDLES = 10
"""How many valid ids an error names: enough to choose from, few enough for a model to read."""


def unknown_handle(kind: str, handle: str, valid: Sequence[str]) -> UnknownHandle:
    """The error for an unknown id, which names the newest valid ones.

    Args:
        kind: ``machine``, ``commit`` or ``run``.
        handle: The unknown id.
        valid: The known ids, oldest first.
    """
    if not valid:
        return UnknownHandle(f"No {kind} {handle!r}: there is no {kind} at all yet.")
    named = ", ".join(list(reversed(valid))[:NAMED_HANDLES])
    more = f" and {len(valid) - NAMED_HANDLES} older" if len(valid) > NAMED_HANDLES else ""
    return UnknownHandle(f"No {kind} {handle!r}. Known, newest first: {named}{more}.")
