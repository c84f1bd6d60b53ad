"""Trying again: how long to wait, and when to stop. For every remote service.

The retries of providers' SDKs are switched off. They end where the stream begins, so they miss
what breaks in the middle of a reply, and one of them waits for as long as a `Retry-After` says,
without limit.
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
"""With the delays below, a fault may last about 8 seconds; one of minutes is better reported."""

FIRST_DELAY = 0.5
"""Seconds before the second attempt, doubled for each further one; as in the providers' SDKs."""

MAX_RETRY_AFTER = 60.0
"""Rate limits are counted per minute: a server that wants a longer wait has another reason."""

_log = logging.getLogger(__name__)


class PassingFault(VersRlmError):
    """The same request may succeed later. No caller sees it: see `with_retries`.

    `retry_after` is the number of seconds that the server asked to wait, if it did.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


async def with_retries(
    attempt: Callable[[], Awaitable[T]], *, failed: Callable[[str], VersRlmError]
) -> T:
    """Make attempts until one succeeds, fails for good, or there were enough of them.

    Raises what `failed` makes of the last fault's words when there were enough, or at once when
    the server asks for a wait of more than `MAX_RETRY_AFTER` seconds.
    """
    tried = 0
    while True:
        tried += 1
        try:
            return await attempt()
        except PassingFault as fault:
            delay = _delay(fault, tried, failed)
            _log.info("%s Trying again in %.1f s.", fault, delay)
        await anyio.sleep(delay)


def _delay(fault: PassingFault, tried: int, failed: Callable[[str], VersRlmError]) -> float:
    wanted = fault.retry_after or 0.0
    if wanted > MAX_RETRY_AFTER:
        raise failed(f"{fault} It asks to wait {wanted:.0f} s: try again then.") from None
    if tried == MAX_ATTEMPTS:
        raise failed(f"{fault} Tried {tried} times: try again later.") from None
    if fault.retry_after is not None:
        # Calls that were turned away together must not come back together.
        return wanted + random.uniform(0, FIRST_DELAY)  # noqa: S311 - not a secret
    return FIRST_DELAY * 2 ** (tried - 1) * random.uniform(0.75, 1.25)  # noqa: S311 - not a secret


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that a response asks to wait: milliseconds, seconds or a date (RFC 9110)."""
    if (milliseconds := _number(headers.get("retry-after-ms"))) is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    if (seconds := _number(value)) is not None:
        return seconds
    date = parsedate_tz(value) if value else None
    return None if date is None else max(0.0, mktime_tz(date) - time.time())


def _number(text: str | None) -> float | None:
    """A count of seconds; None for what is no such thing, infinities and negatives included."""
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if 0 <= number < float("inf") else None
