"""Retries for all remote services: how long to wait, and when to stop.

The retries of the providers' SDKs are disabled. They stop when the stream begins, so they do not
cover a reply that breaks off, and one of them waits as long as `Retry-After` says, without limit.
"""

from __future__ import annotations

import logging
import random
import re
import time
from datetime import datetime
from email.utils import mktime_tz, parsedate_tz
from typing import TYPE_CHECKING, TypeVar

import anyio

from vers_rlm_mcp.errors import VersRlmError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

T = TypeVar("T")

MAX_ATTEMPTS = 5
"""With the delays below, a fault may last about 8 seconds; longer ones are better reported."""

FIRST_DELAY = 0.5
"""Seconds before the second attempt, doubled for each further one, as in the providers' SDKs."""

MAX_RETRY_AFTER = 60.0
"""Seconds. Rate limits apply per minute, so a longer wait has another reason."""

_LONG = 366 * 24 * 3600.0

_log = logging.getLogger(__name__)


class PassingFault(VersRlmError):
    """The same request may succeed later. `with_retries` handles this error, so no caller sees it.

    `retry_after` is the number of seconds to wait, if the server specified it.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.max_attempts = MAX_ATTEMPTS


async def with_retries(
    attempt: Callable[[], Awaitable[T]],
    *,
    failed: Callable[[str], VersRlmError],
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    forgives: Callable[[PassingFault], bool] = lambda _: False,
) -> T:
    """Call `attempt` until it succeeds or raises anything but `PassingFault`.

    After the last fault's `max_attempts`, or if the server requires a wait of more than
    `MAX_RETRY_AFTER` seconds, raises the error that `failed` creates from the fault's message.
    Attempts up to a fault for which `forgives` returns true are not counted.
    """
    tried = 0
    while True:
        tried += 1
        try:
            return await attempt()
        except PassingFault as fault:
            if forgives(fault):
                tried = 1
            delay = _delay(fault, tried, failed)
            _log.info("%s Retrying in %.1f s.", fault, delay)
        await sleep(delay)


def _delay(fault: PassingFault, tried: int, failed: Callable[[str], VersRlmError]) -> float:
    wanted = fault.retry_after or 0.0
    if wanted > MAX_RETRY_AFTER:
        when = f"in {wanted:.0f} s" if wanted < _LONG else "in more than a year"
        raise failed(f"{fault} Try again {when}.") from None
    if tried >= fault.max_attempts:
        raise failed(f"{fault} Tried {tried} times: try again later.") from None
    if fault.retry_after is not None:
        # Jitter: calls that were rejected together must not be retried together.
        return wanted + random.uniform(0, FIRST_DELAY)  # noqa: S311 - not a secret
    return FIRST_DELAY * 2 ** (tried - 1) * random.uniform(0.75, 1.25)  # noqa: S311 - not a secret


def retry_after(headers: Mapping[str, str], words: str = "") -> float | None:
    """The wait that a response asks for, in its headers or its message.

    Headers may hold milliseconds, seconds or a date (RFC 9110), and in practice also durations
    (``1m30s``), ISO 8601 dates, and the same value twice.
    """
    if (milliseconds := _number(headers.get("retry-after-ms"))) is not None:
        return milliseconds / 1000
    value = headers.get("retry-after", "").strip()
    for text in (value, value.partition(",")[0]):
        for read in (_number, _duration, _date):
            if (seconds := read(text)) is not None:
                return seconds
    # OpenAI: "Please try again in 1m2.5s." Gemini: "Please retry in 34.07s."
    asked = _ASKED.search(words)
    return _duration(asked[1]) if asked else None


_ASKED = re.compile(r"\b(?:try again|retry) (?:in|after) ([\d.]+ ?[a-z][\d.a-z]*)", re.IGNORECASE)
_PART = re.compile(
    r"(\d+(?:\.\d+)?) ?(milliseconds?|ms|seconds?|secs?|s|minutes?|mins?|m|hours?|h)"
)
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def _number(text: str | None) -> float | None:
    """Parse a non-negative, finite number; return None for anything else."""
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if 0 <= number < float("inf") else None


def _duration(text: str) -> float | None:
    """Parse a duration such as ``90s``, ``1m30s`` or ``250ms``."""
    text = text.lower().rstrip(".")
    parts = _PART.findall(text)
    if not parts or _PART.sub("", text).strip():
        return None
    return sum(float(number) * _seconds(unit) for number, unit in parts)


def _seconds(unit: str) -> float:
    return 0.001 if unit.startswith(("ms", "milli")) else _UNITS[unit[0]]


def _date(text: str) -> float | None:
    """The seconds until a date; 0 if it has passed."""
    try:
        date = parsedate_tz(text)
        moment = datetime.fromisoformat(text).timestamp() if date is None else mktime_tz(date)
        return max(0.0, moment - time.time())
    except (ValueError, OverflowError):  # no date, or of no year, month or hour that there is
        return None
