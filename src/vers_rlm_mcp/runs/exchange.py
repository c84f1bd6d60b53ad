"""Identifies requests of conversations by what was said and seen, not by how prompts word it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from vers_rlm_mcp import rlm
from vers_rlm_mcp.values import CellResult, Completion

if TYPE_CHECKING:
    from pydantic import JsonValue


class Exchange:
    """What was said and seen in a conversation so far.

    A recorded reply answers the request at which the same was said and seen: so a version that
    words its prompts differently still finds the replies that older ones have paid for. Times do
    not count, and neither does how the conversation is conducted.
    """

    def __init__(self, *start: JsonValue) -> None:
        self._digest = hashlib.sha256()
        self._add(*start)

    @classmethod
    def of_task(cls, task: rlm.Task, origin: str = "") -> Exchange:
        """The exchange of a conversation that begins; `origin` is its parent's fingerprint."""
        facts = task.about()
        if branch := task.branch:
            return cls(facts, origin, branch.plan, branch.number, branch.count)
        return cls(facts)

    @classmethod
    def of_child(cls, path: str, about: str) -> Exchange:
        """The exchange of a child, as far as journals without `ModelReplied.exchange` tell."""
        return cls(path, about)

    def add(self, reply: rlm.Reply) -> None:
        """Append what the engine was told."""
        match reply:
            case Completion():
                self._add("said", reply.text, reply.stop_reason)
            case CellResult():
                final = reply.final and asdict(reply.final)
                self._add("ran", reply.status, reply.output, reply.error, final, reply.notes)
            case rlm.Verdict():
                self._add("checked", reply.accepted, reply.output)
            case _:
                pass

    def fingerprint(self, model: str = "") -> str:
        """Identifies the exchange, or the request to a model of this name that follows it."""
        digest = self._digest.copy()
        digest.update(model.encode())
        return digest.hexdigest()

    def _add(self, *parts: object) -> None:
        self._digest.update(json.dumps(parts, sort_keys=True).encode())
