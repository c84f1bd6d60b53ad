"""Retries for all remote services: how long to wait, and when to stop.

The retries of the providers' SDKs are disabled. They stop when the stream begins, so they do not
cover a reply that breaks off, and one of them waits as long as `Retry-After` says, without limit.
"""

from __future__ import annotations

import logging
import random
import time
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
    forgives: Callable[[], bool] = lambda: False,
) -> T:
    """Call `attempt` until it succeeds or raises anything but `PassingFault`.

    After the last fault's `max_attempts`, or if the server requires a wait of more than
    `MAX_RETRY_AFTER` seconds, raises the error that `failed` creates from the fault's message.
    Attempts before one for which `forgives` returns true are not counted.
    """
    tried = 0
    while True:
        tried += 1
        try:
            return await attempt()
        except PassingFault as fault:
            if forgives():
                tried = 1
            delay = _delay(fault, tried, failed)
            _log.info("%s Retrying in %.1f s.", fault, delay)
        await sleep(delay)


def _delay(fault: PassingFault, tried: int, failed: Callable[[str], VersRlmError]) -> float:
    wanted = fault.retry_after or 0.0
    if wanted > MAX_RETRY_AFTER:
        raise failed(f"{fault} Try again in {wanted:.0f} s.") from None
    if tried >= fault.max_attempts:
        raise failed(f"{fault} Tried {tried} times: try again later.") from None
    if fault.retry_after is not None:
        # Jitter: calls that were rejected together must not be retried together.
        return wanted + random.uniform(0, FIRST_DELAY)  # noqa: S311 - not a secret
    return FIRST_DELAY * 2 ** (tried - 1) * random.uniform(0.75, 1.25)  # noqa: S311 - not a secret


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The wait that a response asks for: milliseconds, seconds or a date (RFC 9110)."""
    if (milliseconds := _number(headers.get("retry-after-ms"))) is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    if (seconds := _number(value)) is not None:
        return seconds
    try:
        date = parsedate_tz(value) if value else None
        return None if date is None else max(0.0, mktime_tz(date) - time.time())
    except (ValueError, OverflowError):  # a date, but of no year, month or hour that there is
        return None


def _number(text: str | None) -> float | None:
    """Parse a non-negative, finite number; return None for anything else."""
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if 0 <= number < float("inf") else None
