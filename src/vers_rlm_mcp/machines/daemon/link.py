"""The connection to one machine's daemon, made again when it was lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import anyio

from vers_rlm_mcp.errors import MachineError, MachineGone

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from .client import Daemon, Job


FIND_SECONDS: Final = 5.0
"""How long an error may be delayed to find out whether the machine is gone."""


class DaemonLink:
    """The way to one machine, shared by all handles on it.

    Args:
        machine_id: The machine.
        connect: Starts a daemon there, and returns our end of it once it runs.
            Raises `MachineGone` if there is no such machine, and else `MachineError`.
        find: Raises `MachineGone` if there is no such machine, and `MachineError` when that cannot
            be learnt.
    """

    def __init__(
        self,
        machine_id: str,
        connect: Callable[[str], Awaitable[Daemon]],
        find: Callable[[str], Awaitable[object]],
    ) -> None:
        self.machine_id = machine_id
        self.handles = 0
        self._gone = False
        self._connect = connect
        self._find = find
        self._daemon: Daemon | None = None
        self._connecting = anyio.Lock(fast_acquire=True)

    def check(self) -> None:
        """Raise `MachineGone` if the machine is known to be no more."""
        if self._gone:
            raise deleted(self.machine_id)

    async def ready(self) -> None:
        """Connect unless that is done. Raises `MachineGone`, or `MachineError` when it fails."""
        await self._connected()

    async def start(self, request: Mapping[str, Any]) -> Job:
        """Start a job of the machine's daemon. It is sent once, whatever becomes of it."""
        return (await self._connected()).start(request)

    async def explain_loss(self) -> MachineError:
        """The error for a command, or a transfer, whose connection broke."""
        try:
            self.check()
            with anyio.move_on_after(FIND_SECONDS):
                await self._find(self.machine_id)
        except MachineGone as gone:
            self._gone = True
            return gone
        except MachineError:  # something else is wrong as well: what it is shows at the next call
            pass
        return MachineError(
            f"The connection to machine {self.machine_id} was lost. What was asked may have been "
            "done, in part or in whole, and is not done again by itself: look before you repeat it."
        )

    def close(self, *, gone: bool = False) -> None:
        """Cut the connection; `gone` says that the machine is no more."""
        self._gone = self._gone or gone
        daemon, self._daemon = self._daemon, None
        if daemon:
            daemon.lose()

    async def aclose(self) -> None:
        """Cut the connection, and wait until nothing is left of it."""
        if self._daemon:
            await self._daemon.aclose()

    async def _connected(self) -> Daemon:
        self.check()
        async with self._connecting:
            if self._daemon is None or not await self._daemon.is_responsive():
                try:
                    self._daemon = await self._connect(self.machine_id)
                except MachineGone:
                    self._gone = True
                    raise
            return self._daemon


def deleted(machine_id: str) -> MachineGone:
    """The error for a machine that is no more."""
    return MachineGone(f"Machine {machine_id} was deleted; what ran on it is lost.")
