"""How often and after what wait an attempt is made again."""

from __future__ import annotations

import time
from email.utils import formatdate

import anyio
import pytest

from vers_rlm_mcp.errors import ModelFailed, ModelUnavailable
from vers_rlm_mcp.retries import FIRST_DELAY, MAX_ATTEMPTS, PassingFault, retry_after, with_retries


class Attempts:
    """Attempts that fail as they are told, and then succeed."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.made = 0

    async def __call__(self) -> int:
        self.made += 1
        if self.errors:
            raise self.errors.pop(0)
        return self.made


class Clock:
    """Takes note of waits instead of waiting."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)


async def test_an_attempt_that_succeeds_is_the_only_one():
    assert await with_retries(Attempts(), failed=ModelFailed) == 1


async def test_a_passing_fault_is_followed_by_another_attempt():
    with anyio.fail_after(5):
        assert (
            await with_retries(
                Attempts(PassingFault("busy", 0), PassingFault("busy", 0)), failed=ModelFailed
            )
            == 3
        )


async def test_a_lasting_fault_is_not_tried_again():
    attempts = Attempts(ModelUnavailable("no key"))
    with pytest.raises(ModelUnavailable, match="no key"):
        await with_retries(attempts, failed=ModelFailed)
    assert attempts.made == 1


async def test_retries_come_to_an_end():
    attempts, clock = Attempts(*[PassingFault("busy.")] * 20), Clock()
    with pytest.raises(ModelFailed, match=r"busy\. Tried 5 times") as caught:
        await with_retries(attempts, failed=ModelFailed, sleep=clock.sleep)
    assert attempts.made == MAX_ATTEMPTS
    assert clock.waits == [pytest.approx(FIRST_DELAY * 2**n, rel=0.25) for n in range(4)]
    assert type(caught.value) is ModelFailed


async def test_the_wait_that_the_server_asks_for_is_kept():
    clock = Clock()
    faults = Attempts(PassingFault("busy", 0.6), PassingFault("busy", 59))
    await with_retries(faults, failed=ModelFailed, sleep=clock.sleep)
    short, long = clock.waits
    assert 0.6 <= short <= 0.6 + FIRST_DELAY
    assert 59 <= long <= 59 + FIRST_DELAY


async def test_a_wait_beyond_the_limit_fails_at_once_and_says_how_long_it_would_be():
    attempts = Attempts(PassingFault("Quota used up.", 3600))
    with anyio.fail_after(1), pytest.raises(ModelFailed, match="Try again in 3600 s"):
        await with_retries(attempts, failed=ModelFailed)
    assert attempts.made == 1


async def test_waiting_for_the_next_attempt_can_be_cancelled():
    with anyio.fail_after(1), anyio.move_on_after(0.05) as scope:
        await with_retries(Attempts(PassingFault("busy", 30)), failed=ModelFailed)
    assert scope.cancelled_caught


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "9", "retry-after-ms": "1500"}, 1.5),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry-after": "2015-10-21T07:28:00Z"}, 0.0),
        ({"retry-after": "2015-10-21T07:28:00+02:00"}, 0.0),
        ({"retry-after": "7, 7"}, 7.0),
        ({"retry-after": "90s"}, 90.0),
        ({"retry-after": "1m30.5s"}, 90.5),
        ({"retry-after": "250ms"}, 0.25),
        ({"retry-after": "2 seconds"}, 2.0),
        ({"retry-after": "1h"}, 3600.0),
        ({"retry-after": "1 fortnight"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "9" * 400}, None),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers: dict[str, str], seconds: float | None):
    assert retry_after(headers) == seconds


def test_retry_after_may_be_a_date():
    seconds = retry_after({"retry-after": formatdate(time.time() + 30, usegmt=True)})
    assert seconds == pytest.approx(30, abs=2)


@pytest.mark.parametrize(
    "value",
    [
        "Fri, 31 Dec 99999 23:59:59 GMT",
        f"Fri, 31 Dec {'9' * 400} 23:59:59 GMT",
        f"Fri, 31 Dec 2026 23:59:59 +{'9' * 400}",
        "9" * 5000,
        "1e400",
        "NaN",
        "-5",
        "soon",
    ],
)
def test_retry_after_that_is_no_time_is_passed_over(value: str):
    assert retry_after({"retry-after": value, "retry-after-ms": value}) is None


@pytest.mark.parametrize(
    ("words", "seconds"),
    [
        ("Rate limit reached for m: Limit 3, Used 3. Please try again in 20s. Visit x.", 20.0),
        ("Please try again in 6m0s.", 360.0),
        ("Please try again in 1.242s.", 1.242),
        ("Please retry in 34.074824224s.", 34.074824224),
        ("Try again in 250 milliseconds", 0.25),
        ("Try again in a while.", None),
    ],
)
def test_a_wait_that_the_message_asks_for_is_read_too(words: str, seconds: float | None):
    found = retry_after({}, words)
    assert found == (None if seconds is None else pytest.approx(seconds))


async def test_a_wait_of_an_age_is_said_in_few_words():
    with pytest.raises(ModelFailed, match=r"in more than a year\.$"):
        await with_retries(Attempts(PassingFault("Busy.", 1e300)), failed=ModelFailed)


async def test_attempts_before_a_forgiving_one_are_not_counted():
    attempts, clock, others = Attempts(*[PassingFault("busy")] * 12), Clock(), iter([True] * 9)
    made = await with_retries(
        attempts, failed=ModelFailed, sleep=clock.sleep, forgives=lambda _: next(others, False)
    )
    assert made == 13
