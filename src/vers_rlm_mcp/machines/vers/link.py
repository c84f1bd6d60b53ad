"""What connects us to one machine: an SSH connection that is kept open, and opened anew."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import anyio

from vers_rlm_mcp.errors import MachineError, MachineGone

from .faults import NotThere
from .ssh import NotReady

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..daemon import Job
    from .ssh import Connection, Connector

READY_SECONDS: Final = 60.0
"""How long a machine may take until SSH lets us in, after it was made or a connection was lost."""

FIRST_PAUSE: Final = 0.1
LAST_PAUSE: Final = 2.0
"""Seconds between attempts: doubled from the first to the last."""

STOPPED: Final = frozenset({"paused", "sleeping"})
"""States of a machine that goes on when it is told to."""


class Link:
    """The way to one machine, shared by all handles on it."""

    def __init__(self, machine_id: str, connector: Connector) -> None:
        self.machine_id = machine_id
        self.handles = 0
        self._gone = False
        self._connector = connector
        self._connection: Connection | None = None
        self._connecting = anyio.Lock(fast_acquire=True)

    async def ready(self) -> None:
        """Wait until SSH lets us in. Raises `MachineGone`, or `MachineError` when it never does."""
        await self._connected()

    def check(self) -> None:
        """Raise `MachineGone` if the machine is known to be no more."""
        if self._gone:
            raise MachineGone(f"Machine {self.machine_id} was deleted; what ran on it is lost.")

    async def start(self, request: Mapping[str, Any]) -> Job:
        """Start a job of the machine's daemon. It is sent once, whatever becomes of it."""
        return (await self._connected()).daemon.start(request)

    async def fate(self) -> MachineError:
        """The error for a command, or a transfer, whose connection broke."""
        with suppress(MachineError):
            await self._look()
        if self._gone:
            return MachineGone(f"Machine {self.machine_id} was deleted; what ran on it is lost.")
        return MachineError(
            f"The connection to machine {self.machine_id} was lost meanwhile. What was asked may "
            "have been done, in part or in whole, and is not done again by itself: look before you "
            "repeat it."
        )

    def close(self, *, gone: bool = False) -> None:
        """Cut the connection; `gone` says that the machine is no more."""
        self._gone = self._gone or gone
        connection, self._connection = self._connection, None
        if connection:
            connection.abort()

    async def _connected(self) -> Connection:
        self.check()
        async with self._connecting:
            if self._connection is None or not await self._connection.answers():
                self._connection = await self._connect()
            return self._connection

    async def _connect(self) -> Connection:
        pause = FIRST_PAUSE
        reason = "it does not answer"
        with anyio.move_on_after(READY_SECONDS):
            while True:
                try:
                    return await self._connector.connect(self.machine_id)
                except NotReady as error:
                    reason = str(error)
                except NotThere:
                    self.close(gone=True)
                await self._look()
                await anyio.sleep(pause)
                pause = min(2 * pause, LAST_PAUSE)
        raise MachineError(
            f"Machine {self.machine_id} does not let us in over SSH after {READY_SECONDS:g} s: "
            f"{reason}. Delete it and make another, or try again later."
        )

    async def _look(self) -> None:
        """See whether the machine is there, and wake it if it stands still."""
        self.check()
        try:
            if (await self._connector.api.status(self.machine_id)).state in STOPPED:
                await self._connector.api.wake(self.machine_id)
        except NotThere:
            self.close(gone=True)
            self.check()
        except MachineError:
            return  # the service is in trouble; SSH may let us in all the same
