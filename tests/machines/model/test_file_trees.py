"""Machines, commits and branches hold the trees that a model of them says.

`MACHINE_MODEL_EXAMPLES` in the environment is the number of random histories to try, other ones at
each time, and to make smaller what fails; without it a few are tried, always the same.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, TypeVar

import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, Phase, settings, strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    multiple,
    rule,
    run_state_machine_as_test,
)
from tree_changes import Changes
from tree_lab import HOLDERS, Lab

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from anyio.from_thread import BlockingPortal
    from hypothesis.stateful import MultipleResults
    from subjects import Subject

pytestmark = pytest.mark.slow

EXAMPLES: Final = int(os.environ.get("MACHINE_MODEL_EXAMPLES", "0"))

SETTINGS: Final = settings(
    max_examples=EXAMPLES or 4,
    stateful_step_count=50 if EXAMPLES else 20,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    phases=(Phase.generate, Phase.shrink) if EXAMPLES else (Phase.generate,),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

MAX_SECONDS: Final = 300 + 60 * EXAMPLES
"""Some seconds for each example, and time to make a failing one small."""

Result = TypeVar("Result")


class Histories(RuleBasedStateMachine):
    """Whatever may happen to some machines."""

    machines: Bundle[str] = Bundle("machines")
    commits: Bundle[str] = Bundle("commits")

    def __init__(self, portal: BlockingPortal, subject: Subject, state: Path) -> None:
        super().__init__()
        self._portal = portal
        self._sound = True
        self._lab = self._do(lambda: _opened(subject, state))

    @initialize(target=machines)
    def create(self) -> str:
        return self._do(self._lab.create)

    @rule(machine=machines, data=st.data(), count=st.integers(1, 12))
    def change(self, machine: str, data: st.DataObject, count: int) -> None:
        changes = Changes(data, self._lab.tree(machine), self._lab.subject)
        drawn = [changes.draw() for _ in range(count)]
        self._do(lambda: self._lab.change(machine, drawn))

    @rule(target=commits, machine=machines, held=st.none() | st.sampled_from(sorted(HOLDERS)))
    def snapshot(self, machine: str, held: str | None) -> str:
        return self._do(lambda: self._lab.snapshot(machine, held))

    @rule(target=machines, machine=machines, count=st.integers(1, 2))
    def branch(self, machine: str, count: int) -> MultipleResults[str]:
        return multiple(*self._do(lambda: self._lab.branch(machine, count)))

    @rule(target=machines, commit=commits)
    def restore(self, commit: str) -> str:
        return self._do(lambda: self._lab.restore(commit))

    @rule(machine=consumes(machines))
    def delete(self, machine: str) -> None:
        self._do(lambda: self._lab.delete(machine))

    @rule(commit=consumes(commits))
    def delete_commit(self, commit: str) -> None:
        self._do(lambda: self._lab.delete_commit(commit))

    @rule()
    def restart_the_server(self) -> None:
        self._do(self._lab.restart)

    def teardown(self) -> None:
        try:
            if self._sound:
                self._do(self._lab.finish)
        finally:
            self._portal.call(self._lab.clear)

    def _do(self, act: Callable[[], Awaitable[Result]]) -> Result:
        """Do something, and remember if it failed: then the rest need not be looked at."""
        self._sound = False
        result = self._portal.call(act)
        self._sound = True
        return result


async def _opened(subject: Subject, state: Path) -> Lab:
    return Lab(subject, state)


@pytest.mark.timeout(MAX_SECONDS)
def test_all_trees_are_as_the_model_says(subject: Subject, state: Path) -> None:
    with start_blocking_portal("asyncio") as portal:

        class Here(Histories):
            def __init__(self) -> None:
                super().__init__(portal, subject, state)

        run_state_machine_as_test(Here, settings=SETTINGS)
