"""What a straight line cannot do, and branches can."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from three_plans import (
    CELL_SECONDS,
    CHANGES,
    CHECK,
    OUTPUTS,
    SIGNATURE,
    branching_model,
    needs_compiler,
    straight_model,
)

from assumptions import needs_root
from vers_rlm_mcp.runs import compare, events

if TYPE_CHECKING:
    from lab import Lab

pytestmark = [needs_compiler, pytest.mark.slow]


@needs_root
async def test_a_straight_line_breaks_the_machine_before_it_comes_to_the_plan_that_works(real: Lab):
    result = await real.run(
        "-> patch",
        straight_model(),
        verify=CHECK,
        max_iterations=5,
        settings={"cell_timeout": CELL_SECONDS},
        seconds=90,
    )
    assert (result.status, result.verified) == ("partial", None)
    assert "cc: not found" in result.reason
    assert "cc: not found" in result.steps[3].output
    assert await real.machines() == []


@pytest.mark.on_vers_too
async def test_branches_find_the_plan_that_works_and_the_machine_has_its_changes_and_no_others(
    real: Lab,
):
    result = await real.run(
        SIGNATURE,
        branching_model(),
        keep_machine=True,
        settings={"cell_timeout": CELL_SECONDS},
        seconds=90,
    )
    assert dict(result.outputs) == OUTPUTS
    (commit,) = real.happened(events.CommitMade)
    bench = real.bench()
    difference = await compare(bench, commit.commit_id, result.machine_id)
    # A copy of a machine of Vers has an identity of its own.
    files = [each.text for each in difference.files if each.path != "/etc/machine-id"]
    assert files == CHANGES
    assert [fact.name for fact in difference.facts] == ["before"], "the commit knows not its own id"
    await bench.delete(result.machine_id)
    assert await real.machines() == []
