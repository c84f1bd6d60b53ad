"""What connects us to one machine: an SSH connection that is kept open, and opened anew."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

import anyio
import asyncssh

from vers_rlm_mcp.errors import MachineError, MachineGone

from .channel import Channel
from .faults import SSH_ERRORS, NotThere
from .ssh import NotReady

if TYPE_CHECKING:
    from .ssh import Connection, Connector

READY_SECONDS: Final = 60.0
"""How long a machine may take until SSH lets us in, after it was made or a connection was lost."""

FIRST_PAUSE: Final = 0.1
LAST_PAUSE: Final = 2.0
"""Seconds between attempts: doubled from the first to the last."""

OPEN_SECONDS: Final = 15.0
"""For the server to open a channel and start a command in it, which takes two round trips."""

MAX_CONNECTIONS: Final = 8
"""To one machine. One is enough as long as the server opens channels over it; OpenSSH stops at ten
(MaxSessions)."""

MAX_REOPENED: Final = 3
"""How often one command is sent again because no channel could be opened for it."""

STOPPED: Final = frozenset({"paused", "sleeping"})
"""States of a machine that goes on when it is told to."""


class Link:
    """The way to one machine, shared by all handles on it."""

    def __init__(self, machine_id: str, connector: Connector) -> None:
        self.machine_id = machine_id
        self.handles = 0
        self._gone = False
        self._connector = connector
        self._connections: list[Connection] = []
        self._opening = anyio.Lock()

    async def ready(self) -> None:
        """Wait until SSH lets us in. Raises `MachineGone`, or `MachineError` when it never does."""
        await self._connection()

    def check(self) -> None:
        """Raise `MachineGone` if the machine is known to be no more."""
        if self._gone:
            raise MachineGone(f"Machine {self.machine_id} was deleted; what ran on it is lost.")

    async def start(self, command: str) -> Channel:
        """Start a command in a channel of its own.

        It is sent again, over another connection, only if it cannot have been started before.
        """
        for _ in range(MAX_REOPENED + MAX_CONNECTIONS):
            connection = await self._connection()
            if channel := await self._try_to_start(connection, command):
                return channel
        raise MachineError(
            f"Machine {self.machine_id} does not let a command start; try again later."
        )

    async def run(self, command: str) -> None:
        """Run a command of ours to its end."""
        channel = await self.start(command)
        try:
            await channel.wait()
        finally:
            channel.close()

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
        """Cut the connections; `gone` says that the machine is no more."""
        self._gone = self._gone or gone
        connections, self._connections = self._connections, []
        for connection in connections:
            connection.abort()

    async def _try_to_start(self, connection: Connection, command: str) -> Channel | None:
        """Start a command over a connection; None when it was not sent."""

        def on_close() -> None:
            connection.channels -= 1

        connection.channels += 1
        channel = Channel(on_close)
        try:
            with anyio.fail_after(OPEN_SECONDS):
                await connection.ssh.create_session(  # pyright: ignore[reportUnknownMemberType] - its type variable is lost
                    lambda: channel, command, encoding=None
                )
            return channel
        except SSH_ERRORS as error:
            refused = isinstance(error, asyncssh.ChannelOpenError) and not connection.lost
            if not refused:
                connection.abort()
            if channel.requested:
                raise await self.fate() from None
            on_close()
            if refused:
                connection.capacity = connection.channels
            return None
        except BaseException:
            channel.close()
            raise

    async def _connection(self) -> Connection:
        self.check()
        while (connection := self._with_room()) is None:
            async with self._opening:
                if self._with_room() is None:
                    self._connections = [one for one in self._connections if not one.lost]
                    if len(self._connections) >= MAX_CONNECTIONS:
                        raise MachineError(
                            f"Machine {self.machine_id} runs as many commands at once as its SSH "
                            "server allows; wait for one to end."
                        )
                    self._connections.append(await self._connect())
        return connection

    def _with_room(self) -> Connection | None:
        return next((one for one in self._connections if one.has_room), None)

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
