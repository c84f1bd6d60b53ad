"""Connects to a machine: tries until SSH lets us in, and resumes the machine if it is paused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import anyio

from vers_rlm_mcp.errors import MachineError

from ..daemon import deleted
from .faults import NotThere
from .ssh import NotReady

if TYPE_CHECKING:
    from ..daemon import Daemon
    from .ssh import Connector

READY_SECONDS: Final = 60.0
"""How long a machine may take until SSH lets us in, after it was made or a connection was lost."""

FIRST_PAUSE: Final = 0.1
LAST_PAUSE: Final = 2.0
"""Seconds between attempts: doubled from the first to the last."""

STOPPED: Final = frozenset({"paused", "sleeping"})
"""States of a machine that can be resumed."""


async def reach(connector: Connector, machine_id: str) -> Daemon:
    """Connect to a machine's daemon.

    Raises `MachineGone` if there is no such machine, and `MachineError` when it takes too long.
    """
    pause = FIRST_PAUSE
    reason = "it does not answer"
    with anyio.move_on_after(READY_SECONDS):
        while True:
            try:
                return await connector.connect(machine_id)
            except NotReady as error:
                reason = str(error)
            except NotThere:
                raise deleted(machine_id) from None
            await _wake(connector, machine_id)
            await anyio.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE)
    raise MachineError(
        f"Machine {machine_id} does not let us in over SSH after {READY_SECONDS:g} s: "
        f"{reason}. Delete it and make another, or try again later."
    )


async def _wake(connector: Connector, machine_id: str) -> None:
    """Resume a machine if it is paused. Raises `MachineGone` if there is no such machine."""
    try:
        if (await connector.api.status(machine_id)).state in STOPPED:
            await connector.api.wake(machine_id)
    except NotThere:
        raise deleted(machine_id) from None
    except MachineError:
        return  # the service is in trouble; SSH may let us in all the same
