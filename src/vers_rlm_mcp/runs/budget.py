"""The budget of a run, counted in one place for it and all conversations that it starts.

A count (iterations, sub-calls, machines) is reserved before it is used, all of a batch at once or
nothing. What only a provider can tell (tokens, money) is settled after the call, so the overshoot
is never more than the calls in flight. Time is passed in as seconds of one monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import inf
from typing import TYPE_CHECKING

from vers_rlm_mcp.errors import BudgetExceeded
from vers_rlm_mcp.rlm import MAX_ITERATIONS, MAX_SUB_CALLS
from vers_rlm_mcp.values import Usage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import JsonValue

MAX_BRANCH_STEPS = 100
"""Enough to try five plans, each for as many steps as the run itself."""
_LOW = 0.2
"""The part of a limit below which the model is warned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of each kind. None means no limit."""

    iterations: int | None = MAX_ITERATIONS
    """Iterations of this conversation alone."""
    sub_calls: int | None = MAX_SUB_CALLS
    tokens: int | None = None
    usd: float | None = None
    seconds: float | None = None
    machines: int | None = None
    """Machines alive at once, not made in all."""
    branch_steps: int | None = MAX_BRANCH_STEPS
    """Iterations of all conversations that this one starts, together."""


_NOUNS = {
    "iterations": "iterations",
    "sub_calls": "sub-calls",
    "tokens": "tokens",
    "usd": "USD",
    "seconds": "seconds",
    "machines": "machines alive at once",
    "branch_steps": "steps of branches and recursive queries",
}
_COUNTED = ("iterations", "sub_calls", "branch_steps")
_ADVICE = {
    "iterations": "Hand in what there is.",
    "sub_calls": "Put more text into each call, count and filter in code, or call FINAL with what "
    "there is.",
    "machines": "Ask for fewer at once, or work on one that exists: vmSwitch to it.",
    "branch_steps": "Do the rest here, step by step, or hand in what there is.",
}
_ENDED = "Hand in what there is; whoever started the run can raise the limit."


class Budget:
    """The limits of a run and what is used of them. A child's use counts for its parents too.

    Not for use from several threads.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        now: float,
        parent: Budget | None = None,
        usage: Usage | None = None,
        used: Mapping[str, float] | None = None,
        ahead: Mapping[str, float] | None = None,
    ) -> None:
        """A new budget or, with `usage` and `used`, the budget of a run to resume.

        `ahead` is the part of `usage` that will be replayed: it counts as used already, but
        children that replay it still need a share for it.
        """
        used = used or {}
        self.limits = limits
        self.usage = usage or Usage()
        """What calls to models have consumed; `usd` is None once a price was unknown."""
        self._ahead = dict(ahead or {})
        self._started = now - used.get("seconds", 0.0)
        self._parent = parent
        self._counts = {kind: int(used.get(kind, 0)) for kind in _COUNTED} | {"machines": 0}

    def used(self, now: float) -> dict[str, float]:
        """Counts and seconds used so far, with which a run can be resumed. `usage` is separate."""
        return {kind: self._used(kind, now) or 0 for kind in (*_COUNTED, "seconds")}

    def reserve_iteration(self, now: float) -> None:
        """Count one iteration of the model that writes the code. Raises `BudgetExceeded`."""
        self.check(now)
        above = self._ancestry()[1:]
        self._reserve([self], "iterations", 1)
        self._reserve(above, "branch_steps", 1)

    def reserve_sub_calls(self, count: int, now: float) -> None:
        """Count `count` calls of the sub-model: all of them, or none and `BudgetExceeded`."""
        self.check(now)
        self._reserve(self._ancestry(), "sub_calls", count)

    def reserve_machines(self, count: int, now: float) -> None:
        """Count `count` more machines as alive: all of them, or none and `BudgetExceeded`."""
        self.check(now)
        self._reserve(self._ancestry(), "machines", count)

    def release_machines(self, count: int) -> None:
        """Release `count` machines: deleted, or reserved and never made."""
        for budget in self._ancestry():
            budget._counts["machines"] -= count

    def machines_left(self, now: float) -> float:
        """How many more machines may be made; infinite without a limit."""
        return min(self._all_left("machines", now), default=inf)

    @property
    def sub_calls(self) -> int:
        """Calls of sub-models that were reserved."""
        return self._counts["sub_calls"]

    def settle(self, usage: Usage, *, recorded: bool = False) -> None:
        """Add the usage of a call to a model. Never raises: it is spent already.

        The root budget starts with the usage of all recorded replies, so a `recorded` one that is
        replayed counts for children only.
        """
        for budget in self._ancestry():
            if budget._parent or not recorded:
                budget.usage += usage
            else:
                budget._ahead["tokens"] = budget._ahead.get("tokens", 0) - usage.tokens
                budget._ahead["usd"] = budget._ahead.get("usd", 0) - (usage.usd or 0)

    def check(self, now: float) -> None:
        """Raise `BudgetExceeded` when tokens, money or time are used up, here or in a parent."""
        for budget in self._ancestry():
            budget._check_own(now)

    def tokens_left(self, now: float) -> int | None:
        """The tokens until the nearest limit, at least 0; None without one."""
        return _whole(min(self._all_left("tokens", now), default=None))

    def release_sub_calls(self, count: int) -> None:
        """Release `count` sub-calls that were reserved and never answered."""
        for budget in self._ancestry():
            budget._counts["sub_calls"] -= count

    def seconds_left(self, now: float) -> float | None:
        """The time until the nearest limit, at least 0; None without one."""
        left = [
            budget.limits.seconds - (now - budget._started)
            for budget in self._ancestry()
            if budget.limits.seconds is not None
        ]
        return max(0.0, min(left)) if left else None

    @property
    def time_limit(self) -> float:
        """The shortest limit of time that holds here, in seconds; infinite without one."""
        limits = [budget.limits.seconds for budget in self._ancestry()]
        return min((limit for limit in limits if limit is not None), default=inf)

    def children(
        self, count: int, iterations: int, *, seconds: float | None = None, now: float
    ) -> list[Budget]:
        """Budgets for `count` conversations, each with an equal share of what is left.

        So none can use up what its siblings need. Both its own limits and these apply to each;
        time and machines are shared. Raises `BudgetExceeded` if there is less than one step for
        each.
        """
        self.check(now)
        steps = min([iterations, *(left // count for left in self._all_left("branch_steps", now))])
        if steps < 1:
            self._reserve(self._ancestry(), "branch_steps", count)
        limits = Limits(
            iterations=int(steps),
            sub_calls=_whole(self._share("sub_calls", count, now)),
            tokens=_whole(self._share("tokens", count, now)),
            usd=self._share("usd", count, now),
            seconds=seconds,
            branch_steps=_whole(self._share("branch_steps", count, now)),
        )
        return [Budget(limits, now=now, parent=self) for _ in range(count)]

    def _share(self, kind: str, count: int, now: float) -> float | None:
        left = self._all_left(kind, now)
        return min(left) / count if left else None

    def _all_left(self, kind: str, now: float) -> list[float]:
        """What is left of a kind, here and in every parent that limits it."""
        return [
            max(0, limit - (budget._used(kind, now) or 0) + max(0, budget._ahead.get(kind, 0)))
            for budget in self._ancestry()
            if (limit := getattr(budget.limits, kind)) is not None
        ]

    def snapshot(self, now: float) -> dict[str, JsonValue]:
        """Used, limit and left of every kind, as ``budget()`` shows it in the REPL."""
        return {kind: self._entry(kind, now) for kind in _NOUNS}

    def low(self, now: float) -> str | None:
        """What is nearly used up, as a short sentence for the model; None while nothing is."""
        parts = [
            f"{_number(limit - used)} of {_number(limit)} {_NOUNS[kind]}"
            for kind, used, limit in self._limited(now)
            # Iterations are shown with every step, and machines come back.
            if kind not in ("iterations", "machines", "branch_steps")
            and limit - used < limit * _LOW
        ]
        return f"Budget left: {', '.join(parts)}." if parts else None

    def _ancestry(self) -> list[Budget]:
        return [self, *(self._parent._ancestry() if self._parent else ())]

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

    @staticmethod
    def _reserve(budgets: list[Budget], kind: str, count: int) -> None:
        for budget in budgets:
            limit, used = getattr(budget.limits, kind), budget._counts[kind]
            if limit is not None and used + count > limit:
                raise BudgetExceeded(
                    f"The budget allows {limit} {_NOUNS[kind]}: {used} are used, {limit - used} "
                    f"left, {count} asked for, none granted. {_ADVICE[kind]}"
                )
        for budget in budgets:
            budget._counts[kind] += count

    def _check_own(self, now: float) -> None:
        if self.limits.usd is not None and self.usage.usd is None:
            unknown = (
                "a provider reported no usage of a call that can be believed"
                if self.usage.estimated
                else "the price of a model that was called is not known"
            )
            raise BudgetExceeded(
                f"The budget allows {self.limits.usd:g} USD, but {unknown}, so the limit cannot be "
                "held. Set a limit on tokens instead, or choose a model with a known price."
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


def _whole(share: float | None) -> int | None:
    return None if share is None else int(share)


def _rounded(value: float | None) -> float | None:
    return round(value, 4) if isinstance(value, float) else value


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"
