"""What a run may use, counted in one place for the run and everything it starts.

A count (iterations, sub-calls, machines) is reserved before it is used, all of a batch at once or
nothing. What only a provider can tell (tokens, money) is settled after the call, so the overshoot
is never more than the calls in flight. Time is passed in as seconds of one monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from vers_rlm_mcp.errors import BudgetExceeded
from vers_rlm_mcp.messages import Usage

if TYPE_CHECKING:
    from pydantic import JsonValue

MAX_ITERATIONS = 20
MAX_SUB_CALLS = 30
_LOW = 0.2
"""The part of a limit below which the model is told what is left."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that may be used of each kind. None is no limit."""

    iterations: int | None = MAX_ITERATIONS
    sub_calls: int | None = MAX_SUB_CALLS
    tokens: int | None = None
    usd: float | None = None
    seconds: float | None = None
    machines: int | None = None
    """Machines alive at once, not made in all."""


_NOUNS = {
    "iterations": "iterations",
    "sub_calls": "sub-calls",
    "tokens": "tokens",
    "usd": "USD",
    "seconds": "seconds",
    "machines": "machines alive at once",
}
_ADVICE = {
    "iterations": "Hand in what there is.",
    "sub_calls": "Put more text into each call, count and filter in code, or call FINAL with what "
    "there is.",
    "machines": "Work on a machine that exists: vmSwitch to it, or restore a commit later.",
}
_ENDED = "Hand in what there is; whoever started the run can raise the limit."


class Budget:
    """The limits of a run and what is used of them. A child's use counts for its parents too.

    Not for use from several threads.
    """

    def __init__(self, limits: Limits, *, now: float, parent: Budget | None = None) -> None:
        self.limits = limits
        self.usage = Usage()
        """What calls to models have consumed; `usd` is None once a price was unknown."""
        self._started = now
        self._parent = parent
        self._counts = {"iterations": 0, "sub_calls": 0, "machines": 0}

    def reserve_iteration(self, now: float) -> None:
        """Count one iteration of the model that writes the code. Raises `BudgetExceeded`."""
        self.check(now)
        self._reserve("iterations", 1)

    def reserve_sub_calls(self, count: int, now: float) -> None:
        """Count `count` calls of the sub-model: all of them, or none and `BudgetExceeded`."""
        self.check(now)
        self._reserve("sub_calls", count)

    def reserve_machines(self, count: int) -> None:
        """Count `count` more machines as alive: all of them, or none and `BudgetExceeded`."""
        self._reserve("machines", count)

    def release_machines(self, count: int) -> None:
        """Count `count` machines as gone: deleted, or reserved and never made."""
        for budget in self._line():
            budget._counts["machines"] -= count

    def settle(self, usage: Usage) -> None:
        """Add what a call to a model consumed. Never raises: it is spent already."""
        for budget in self._line():
            budget.usage += usage

    def check(self, now: float) -> None:
        """Raise `BudgetExceeded` when tokens, money or time are used up, here or in a parent."""
        for budget in self._line():
            budget._check_own(now)

    def seconds_left(self, now: float) -> float | None:
        """The time until the nearest limit, at least 0; None without one."""
        left = [
            budget.limits.seconds - (now - budget._started)
            for budget in self._line()
            if budget.limits.seconds is not None
        ]
        return max(0.0, min(left)) if left else None

    def child(self, limits: Limits, *, now: float) -> Budget:
        """A budget for a part of this run. It is held to its own limits and to these."""
        return Budget(limits, now=now, parent=self)

    def snapshot(self, now: float) -> dict[str, JsonValue]:
        """Used, limit and left of every kind, as ``budget()`` shows it in the REPL."""
        return {kind: self._entry(kind, now) for kind in _NOUNS}

    def low(self, now: float) -> str | None:
        """What is nearly used up, as a short sentence for the model; None while nothing is."""
        parts = [
            f"{_number(limit - used)} of {_number(limit)} {_NOUNS[kind]}"
            for kind, used, limit in self._limited(now)
            # Iterations are shown with every step, and machines come back.
            if kind not in ("iterations", "machines") and limit - used < limit * _LOW
        ]
        return f"Budget left: {', '.join(parts)}." if parts else None

    def _line(self) -> list[Budget]:
        return [self, *(self._parent._line() if self._parent else ())]

    def _used(self, kind: str, now: float) -> float | None:
        if kind == "tokens":
            return self.usage.tokens
        if kind == "usd":
            return self.usage.usd
        if kind == "seconds":
            return now - self._started
        return self._counts[kind]

    def _limited(self, now: float) -> list[tuple[str, float, float]]:
        found: list[tuple[str, float, float]] = []
        for field in fields(self.limits):
            limit, used = getattr(self.limits, field.name), self._used(field.name, now)
            if limit is not None and used is not None:
                found.append((field.name, min(used, limit), limit))
        return found

    def _reserve(self, kind: str, count: int) -> None:
        for budget in self._line():
            limit, used = getattr(budget.limits, kind), budget._counts[kind]
            if limit is not None and used + count > limit:
                raise BudgetExceeded(
                    f"The budget allows {limit} {_NOUNS[kind]}: {used} are used, {limit - used} "
                    f"left, {count} asked for, none granted. {_ADVICE[kind]}"
                )
        for budget in self._line():
            budget._counts[kind] += count

    def _check_own(self, now: float) -> None:
        if self.limits.usd is not None and self.usage.usd is None:
            raise BudgetExceeded(
                f"The budget allows {self.limits.usd:g} USD, but the price of a model that was "
                "called is not known, so the limit cannot be held. Set a limit on tokens instead, "
                "or choose a model with a known price."
            )
        for kind in ("tokens", "usd", "seconds"):
            limit, used = getattr(self.limits, kind), self._used(kind, now)
            if limit is not None and used is not None and used >= limit:
                raise BudgetExceeded(
                    f"The budget of {_number(limit)} {_NOUNS[kind]} is used up "
                    f"({_number(used)} used). {_ENDED}"
                )

    def _entry(self, kind: str, now: float) -> JsonValue:
        limit, used = getattr(self.limits, kind), self._used(kind, now)
        left = None if limit is None or used is None else max(0, limit - used)
        return {"used": _rounded(used), "limit": limit, "left": _rounded(left)}


def _rounded(value: float | None) -> float | None:
    return round(value, 4) if isinstance(value, float) else value


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"
