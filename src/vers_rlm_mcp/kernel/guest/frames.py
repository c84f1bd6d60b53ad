"""The frames between a kernel and its host, and the limits that both halves keep to."""

from __future__ import annotations

PROTOCOL = 1
"""Changed whenever the two halves would no longer understand each other."""

TO_GUEST = frozenset(
    {
        # The first frame of an attachment. Payload: JSON list of functions, as `ReplFunction`.
        "hello",  # protocol, home, current, limit, saving, memory
        "run",  # id, cell; payload: the code
        "load",  # id, name, path, form: text, json or bytes
        "save",  # id
        "restore",  # id
        "variables",  # id
        "current",  # machine: where exec and files act from now on
        "interrupt",  # id: of the request to interrupt
        "reply",  # id, ok: to a call; payload: the JSON value, or the text of the error
    }
)
"""Every kind of frame a host sends, with its header's fields."""

FROM_GUEST = frozenset(
    {
        "ready",  # protocol, kernel, cells; payload: JSON list of the variables' names
        "output",  # id, skipped: bytes left out before this piece; payload: bytes as written
        "call",  # id, name: of a function of the host; payload: JSON arguments
        "done",  # id, ok: the answer to a request; payload: JSON value, or the text of the error
    }
)
"""Every kind of frame a guest sends, with its header's fields."""

MAX_CALL_VALUES = 10_000
"""Values in the arguments of one call: many calls may be in flight, and few have long lists."""

MAX_CALLS = 256
"""Calls to the host that one cell may have in flight. The guest lets further ones wait."""
