"""Conversations that a cell starts on copies of the machine: what came of them, and which wins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vers_rlm_mcp import rlm
from vers_rlm_mcp.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import JsonValue

    from .workbench import Workbench


@dataclass
class Child:
    """A conversation on a copy of the machine, and what came of it."""

    path: str
    about: str
    first_machine: str
    bench: Workbench
    budget: rlm.Budget
    score: float | None = None
    outcome: rlm.Outcome | None = None
    error: str | None = None
    seconds: float = 0.0

    @property
    def machine_id(self) -> str | None:
        """The machine that it ended on."""
        return self.bench.current

    @property
    def right(self) -> bool:
        """Whether it handed in outputs that may win."""
        return self.outcome is not None and self.outcome.status != "partial"

    @property
    def status(self) -> str:
        """That of its outcome, or ``failed`` without one."""
        return self.outcome.status if self.outcome else "failed"

    @property
    def outputs(self) -> dict[str, JsonValue]:
        """What it handed in."""
        return self.outcome.outputs if self.outcome else {}

    @property
    def reason(self) -> str | None:
        """Why it ended."""
        return self.outcome.reason if self.outcome else self.error

    @property
    def steps(self) -> int:
        """How many steps it took."""
        return len(self.outcome.steps) if self.outcome else 0

    def to_json(self, *, kept: bool) -> JsonValue:
        """The result as the cell gets it."""
        return {
            "branch": self.path,
            "plan": self.about,
            "right": self.right,
            "status": self.status,
            "outputs": self.outputs,
            "error": None if self.right else self.reason,
            "verified": self.outcome is not None and self.outcome.verified,
            "score": self.score,
            "steps": self.steps,
            "machine": self.machine_id if kept else None,
            "tokens": self.budget.usage.tokens,
            "usd": self.budget.usage.usd,
            "seconds": round(self.seconds, 3),
        }

    def finished(self) -> rlm.ChildFinished:
        """The event of its end."""
        return rlm.ChildFinished(
            self.path,
            self.status,
            self.outputs,
            self.reason or "It broke off.",
            self.score,
            self.steps,
            self.budget.usage,
            self.seconds,
        )


def check_score(signature: rlm.Signature, score: str | None) -> None:
    """Raise `UsageError` when branches are to be scored by what they do not hand in."""
    names = [field.name for field in signature.outputs]
    if score is not None and score not in names:
        raise UsageError(
            f"score must be the name of an output ({', '.join(names)}) or a function of the "
            f"result, not {score[:40]!r}."
        )


def score_of(child: Child, name: str | None) -> float | None:
    """The number in the output of that name, if there is one."""
    value = child.outcome.outputs.get(name) if child.outcome and name else None
    return float(value) if isinstance(value, int | float) else None


def best_of(children: Sequence[Child], *, by_score: bool) -> Child | None:
    """The one with the highest score or, without scores, with the fewest steps."""
    right = [child for child in children if child.right]
    if by_score:
        scored = [child for child in right if child.score is not None]
        return max(scored, key=lambda child: child.score or 0.0, default=None)
    return min(right, key=lambda child: child.steps, default=None)


def values_of(child: Child, signature: rlm.Signature) -> JsonValue:
    """What a query returns. Raises `UsageError` when it has not come to an end."""
    if not child.right:
        there = f" What there is: {child.outputs!r:.1000}" if child.outputs else ""
        raise UsageError(f"The query has no answer: {child.reason}{there}")
    return unwrapped(child.outputs, signature)


def unwrapped(outputs: Mapping[str, JsonValue], signature: rlm.Signature) -> JsonValue:
    """The value of a single output; of several, all of them by name."""
    if len(signature.outputs) == 1:
        return outputs[signature.outputs[0].name]
    return dict(outputs)
