"""SIGTERM, SIGINT and SIGHUP as a function call, instead of the end of the process."""

from __future__ import annotations

import logging
import signal
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)


async def call_on_signal(stop: Callable[[], object]) -> None:
    """Call `stop` on every signal to end; runs until it is cancelled.

    It also runs during clean-up, which is bounded, so that a second signal does not interrupt it.
    """
    endings = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
        endings.append(signal.SIGHUP)
    with anyio.open_signal_receiver(*endings) as signals:
        async for number in signals:
            logger.info("Ending on %s", signal.Signals(number).name)
            stop()
