"""What connects us to one machine: a daemon in it, started anew where the connection broke."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio

from vers_rlm_mcp.errors import MachineError, MachineGone

from .faults import NoSuchSandbox
from .pipe import Pipe, open_pipe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..daemon import Job
    from .library import Library


class Link:
    """The way to one machine, shared by all handles on it."""

    def __init__(self, machine_id: str, library: Library) -> None:
        self.machine_id = machine_id
        self.handles = 0
        self.copying = anyio.Lock(fast_acquire=True)
        """Held while the machine is frozen or copied."""
        self._gone = False
        self._library = library
        self._pipe: Pipe | None = None
        self._connecting = anyio.Lock(fast_acquire=True)

    def check(self) -> None:
        """Raise `MachineGone` if the machine is known to be no more."""
        if self._gone:
            raise MachineGone(f"Machine {self.machine_id} was deleted; what ran on it is lost.")

    async def start(self, request: Mapping[str, Any]) -> Job:
        """Start a job of the machine's daemon. It is sent once, whatever becomes of it."""
        self.check()
        async with self._connecting:
            if self._pipe is None or self._pipe.daemon.lost:
                self._pipe = await self._connect()
            return self._pipe.daemon.start(request)

    async def fate(self) -> MachineError:
        """The error for a command, or a transfer, whose connection broke."""
        with suppress(MachineError):
            self._gone = self._gone or await self._library.state(self.machine_id) is None
        try:
            self.check()
        except MachineGone as gone:
            return gone
        return MachineError(
            f"The connection to machine {self.machine_id} was lost meanwhile: it was stopped, or "
            "has no memory left. What was asked may have been done, in part or in whole: look "
            "before you repeat it."
        )

    def close(self, *, gone: bool = False) -> None:
        """Cut the connection; `gone` says that the machine is no more."""
        self._gone = self._gone or gone
        pipe, self._pipe = self._pipe, None
        if pipe:
            pipe.abort()

    async def _connect(self) -> Pipe:
        try:
            return await open_pipe(self._library, self.machine_id)
        except NoSuchSandbox:
            self.close(gone=True)
            self.check()
            raise
        except (TimeoutError, anyio.BrokenResourceError) as error:
            reason = str(error) or "it is silent"
            raise MachineError(
                f"Machine {self.machine_id} does not let a program start: {reason}. Delete it and "
                "make another, or try again later."
            ) from None
