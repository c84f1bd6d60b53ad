"""What sub-models say reaches cells as an answer only if it is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from lab import Speaker, Turns, cell

from vers_rlm_mcp.errors import ModelFailed
from vers_rlm_mcp.runs import events
from vers_rlm_mcp.runs.past import Past
from vers_rlm_mcp.values import Completion, Usage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lab import Lab

    from vers_rlm_mcp.values import Message

ASK = "try:\n    FINAL(llmQuery('a'))\nexcept RuntimeError as error:\n    FINAL(str(error))"
BATCH = "FINAL(llmQueryBatched(['a', 'b']))"


class Says(Speaker):
    """Says one thing after the other, whoever asks."""

    def __init__(self, *replies: Completion | Exception) -> None:
        super().__init__(self._next)
        self._replies = list(replies)

    async def _next(self, messages: Sequence[Message]) -> Completion:
        reply = self._replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply


async def answer(lab: Lab, code: str, sub_model: Speaker, **options: Any) -> Any:
    model = Turns(cell(code))
    result = await lab.run("-> x: any", model, sub_model=sub_model, max_iterations=1, **options)
    return result.outputs["x"]


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (Completion("The first half", Usage(1), "length"), "cut off at its limit of length"),
        (Completion("I cannot", Usage(1), "refusal"), "refused to answer"),
        (Completion("", Usage(1), "refusal"), "refused to answer"),
        (Completion("Perhaps", Usage(1), "unknown"), "may be incomplete"),
    ],
)
async def test_half_a_reply_or_a_refusal_is_an_error_that_quotes_it(
    lab: Lab, reply: Completion, problem: str
):
    told = await answer(lab, ASK, Says(reply))
    assert problem in told
    assert reply.text in told
    one, two = await answer(lab, BATCH, Says(reply, Completion("whole")))
    assert one.startswith("[Error: ")
    assert problem in one
    assert two == "whole"
    finished = lab.happened(events.SubCallFinished)
    assert [bool(event.error) for event in finished] == [True, True, False]
    assert finished[0].text == reply.text
    assert finished[0].stop_reason == reply.stop_reason


async def test_an_empty_reply_is_asked_for_once_more(lab: Lab):
    empty = Completion(" \n", Usage(1))
    assert await answer(lab, ASK, Says(empty, Completion("there"))) == "there"
    only_thoughts = Completion("<think>Hm.</think>", Usage(1))
    told = await answer(lab, ASK, Says(only_thoughts, only_thoughts))
    assert "held nothing but thoughts" in told
    assert [event.thoughts for event in lab.happened(events.SubCallFinished)][-1] == "Hm."


async def test_an_answer_is_compared_without_the_thoughts_before_it(lab: Lab):
    sub_model = Says(Completion("<think>It rains, so no.</think>\n\nyes"))
    assert await answer(lab, "FINAL(llmQuery('a') == 'yes')", sub_model) is True


async def test_a_call_that_fails_is_not_counted(lab: Lab):
    code = """
told = []
for _ in range(3):
    try:
        told.append(llmQuery('a'))
    except RuntimeError as error:
        told.append(str(error))
FINAL([*told, budget()['sub_calls']['used']])
"""
    down = ModelFailed("down")
    sub_model = Says(down, down, Completion("up"))
    assert await answer(lab, code, sub_model, max_llm_calls=1) == ["down", "down", "up", 1]


async def test_a_reply_that_is_no_answer_was_paid_for_and_is_not_asked_for_again(lab: Lab):
    cut_off = Completion("The first half", Usage(7), "length")
    await answer(lab, ASK, Says(cut_off))
    (finished,) = lab.happened(events.SubCallFinished)
    past = Past("", lab.events)
    assert past.usage.tokens == 7
    known = past.take(finished.request)
    assert known
    assert (known.text, known.stop_reason) == ("The first half", "length")


async def test_replies_may_be_as_long_as_set_or_as_the_budget_leaves(lab: Lab):
    class Limited(Turns):
        limits: list[int | None] = []  # noqa: RUF012 - one list for both models

        async def complete(
            self, messages: Sequence[Message], *, max_tokens: int | None = None
        ) -> Completion:
            self.limits.append(max_tokens)
            return await super().complete(messages, max_tokens=max_tokens)

    model = Limited(cell("llmQuery('a')"), cell("FINAL(1)"), usage=Usage(400))
    sub_model = Limited("yes", usage=Usage(500))
    settings = {"max_reply_tokens": 5000, "max_sub_reply_tokens": 600}
    await lab.run("-> x: any", model, sub_model=sub_model, settings=settings, max_tokens=1000)
    assert Limited.limits == [1000, 600, 100]
