"""The budget: reserved before, settled after, over the whole tree."""

from __future__ import annotations

import json

import pytest
from inline_snapshot import snapshot

from vers_rlm_mcp.errors import BudgetExceeded
from vers_rlm_mcp.runs import Budget, Limits
from vers_rlm_mcp.values import Usage


def refused(act: object) -> str:
    assert callable(act)
    with pytest.raises(BudgetExceeded) as caught:
        act()
    return str(caught.value)


def test_the_default_limits_are_20_iterations_and_30_sub_calls() -> None:
    assert (Limits().iterations, Limits().sub_calls) == (20, 30)


def test_a_batch_is_granted_whole_or_refused_with_what_is_left() -> None:
    budget = Budget(Limits(sub_calls=5), now=0)
    budget.reserve_sub_calls(3, now=1)
    assert refused(lambda: budget.reserve_sub_calls(3, now=2)) == snapshot(
        "The budget allows 5 sub-calls: 3 are used, 2 left, 3 asked for, none granted. Put more "
        "text into each call, count and filter in code, or call FINAL with what there is."
    )
    budget.reserve_sub_calls(2, now=3)


def test_iterations_are_counted() -> None:
    budget = Budget(Limits(iterations=1), now=0)
    budget.reserve_iteration(now=0)
    assert "allows 1 iterations" in refused(lambda: budget.reserve_iteration(now=0))


def test_machines_come_back() -> None:
    budget = Budget(Limits(machines=2), now=0)
    budget.reserve_machines(2, now=0)
    assert "2 machines alive at once" in refused(lambda: budget.reserve_machines(1, now=0))
    budget.release_machines(1)
    budget.reserve_machines(1, now=0)


@pytest.mark.parametrize(
    ("limits", "usage", "now", "named"),
    [
        (Limits(tokens=100), Usage(60, 30, 5, 5), 0, "100 tokens is used up (100 used)"),
        (Limits(usd=0.5), Usage(usd=0.75), 0, "0.50 USD is used up (0.75 used)"),
        (Limits(seconds=60), Usage(), 61.5, "60 seconds is used up (61.50 used)"),
    ],
)
def test_a_limit_that_is_used_up_refuses_every_further_call(
    limits: Limits, usage: Usage, now: float, named: str
) -> None:
    budget = Budget(limits, now=0)
    budget.check(0)
    budget.settle(usage)
    for call in (
        lambda: budget.check(now),
        lambda: budget.reserve_iteration(now),
        lambda: budget.reserve_sub_calls(1, now),
    ):
        assert named in refused(call)
    assert budget.snapshot(now)["sub_calls"] == {"used": 0, "limit": 30, "left": 30}


def test_money_cannot_be_limited_where_prices_are_unknown() -> None:
    budget = Budget(Limits(usd=1), now=0)
    budget.settle(Usage(10, 10, usd=None))
    assert "price of a model that was called is not known" in refused(lambda: budget.check(0))
    unlimited = Budget(Limits(), now=0)
    unlimited.settle(Usage(10, 10, usd=None))
    unlimited.check(0)


def test_what_a_child_uses_counts_for_its_parents() -> None:
    parent = Budget(Limits(sub_calls=4, tokens=100), now=0)
    child = Budget(Limits(sub_calls=10), now=5, parent=parent)
    child.reserve_sub_calls(3, now=6)
    child.settle(Usage(50, 50))
    assert parent.usage.tokens == 100
    assert "100 tokens" in refused(lambda: child.reserve_sub_calls(1, now=7))


def test_a_child_is_held_to_its_parents_limits_and_a_refusal_reserves_nothing() -> None:
    parent = Budget(Limits(sub_calls=2), now=0)
    child = Budget(Limits(sub_calls=10), now=0, parent=parent)
    assert "allows 2 sub-calls: 0 are used" in refused(lambda: child.reserve_sub_calls(3, now=0))
    child.reserve_sub_calls(2, now=0)


def test_the_time_left_is_that_of_the_nearest_limit() -> None:
    parent = Budget(Limits(seconds=100), now=10)
    child = Budget(Limits(seconds=1_000), now=50, parent=parent)
    assert child.seconds_left(now=60) == 50
    assert child.seconds_left(now=500) == 0
    assert Budget(Limits(), now=0).seconds_left(now=5) is None


def test_the_snapshot_is_json_and_says_used_limit_and_left() -> None:
    budget = Budget(Limits(tokens=1_000, usd=1.0, seconds=60), now=100)
    budget.reserve_iteration(now=100)
    budget.settle(Usage(200, 100, usd=0.25))
    assert json.loads(json.dumps(budget.snapshot(now=112.34567))) == snapshot(
        {
            "iterations": {"used": 1, "limit": 20, "left": 19},
            "sub_calls": {"used": 0, "limit": 30, "left": 30},
            "tokens": {"used": 300, "limit": 1000, "left": 700},
            "usd": {"used": 0.25, "limit": 1.0, "left": 0.75},
            "seconds": {"used": 12.3457, "limit": 60, "left": 47.6543},
            "machines": {"used": 0, "limit": None, "left": None},
            "branch_steps": {"used": 0, "limit": 100, "left": 100},
        }
    )


def test_what_runs_low_is_said_and_nothing_before() -> None:
    budget = Budget(Limits(sub_calls=10, tokens=100_000), now=0)
    budget.reserve_sub_calls(8, now=0)
    assert budget.low(now=0) is None
    budget.reserve_sub_calls(1, now=0)
    budget.settle(Usage(90_000))
    assert budget.low(now=0) == "Budget left: 1 of 10 sub-calls, 10,000 of 100,000 tokens."
