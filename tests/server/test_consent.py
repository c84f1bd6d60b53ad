"""Asking the user before a run that may cost much."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from clients import call, environment_in, error, in_memory, script
from mcp_types import ElicitRequestFormParams, ElicitRequestParams, ElicitResult

if TYPE_CHECKING:
    from pathlib import Path

    from mcp.client import ClientRequestContext

RUN = {"signature": "-> answer: int"}


class User:
    """Answers what is asked, and remembers it."""

    def __init__(self, action: Any = "accept", start: bool = True) -> None:
        self.asked: list[str] = []
        self._result = ElicitResult(
            action=action, content={"start": start} if action == "accept" else None
        )

    async def __call__(
        self, context: ClientRequestContext, params: ElicitRequestParams
    ) -> ElicitResult:
        assert isinstance(params, ElicitRequestFormParams)
        self.asked.append(params.message)
        return self._result


@pytest.fixture
def server(tmp_path: Path) -> dict[str, str]:
    """The settings of a server that asks."""
    model = script(tmp_path / "replies", "FINAL(1)")
    return environment_in(tmp_path) | {"VERS_RLM_MODEL": model, "VERS_RLM_CONFIRM_USD": "0.5"}


@pytest.mark.parametrize("era", ["legacy", "auto"])
async def test_a_costly_run_begins_only_with_the_user_s_consent(server: dict[str, str], era: Any):
    user = User()
    async with in_memory(server, mode=era, elicitation_callback=user) as client:
        assert (await call(client, "vers_rlm", **RUN))["outputs"] == {"answer": 1}
        assert user.asked == [
            "A vers_rlm run is about to start that may spend any amount of money."
        ]
    for refusal in (User("decline"), User("cancel"), User(start=False)):
        async with in_memory(server, mode=era, elicitation_callback=refusal) as client:
            assert "did not agree" in await error(client, "vers_rlm", **RUN)
            (run,) = (await call(client, "rlmRuns"))["runs"]
            assert run["status"] == "finished"


async def test_no_one_is_asked_before_a_cheap_run_or_by_a_client_that_cannot_ask(
    server: dict[str, str],
):
    user = User("decline")
    async with in_memory(server, elicitation_callback=user) as client:
        await call(client, "vers_rlm", **RUN, budget={"usd": 0.5})
        assert user.asked == []
        await error(client, "vers_rlm", **RUN, budget={"usd": 0.6})
        assert user.asked == ["A vers_rlm run is about to start that may spend up to 0.6 USD."]
    async with in_memory(server) as client:
        assert (await call(client, "vers_rlm", **RUN))["outputs"] == {"answer": 1}
    assert len(user.asked) == 1
