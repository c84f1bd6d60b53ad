"""Every attempt of `attacks` to get out of a machine fails."""

from __future__ import annotations

import pytest
from attacks import ATTEMPTS, Outcome


@pytest.mark.parametrize("attempt", ATTEMPTS)
async def test_no_one_in_a_machine_can(attempt: str, outcomes: dict[str, Outcome]) -> None:
    assert outcomes[attempt].kind == "refused", outcomes[attempt].text
