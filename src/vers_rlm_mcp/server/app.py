# ruff: noqa: PLC0415 - the rooms below are imported by the first call
"""What all calls of one server share, and how long it lives.

The SDK enters a server's own lifespan once per connection over SSE, and once per server otherwise;
machines belong to the process. So the application is opened by whoever serves it, around all
connections, and the SDK's lifespan is left alone.
"""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Self

import anyio

from vers_rlm_mcp.errors import VersRlmError

if TYPE_CHECKING:
    from types import TracebackType

    from vers_rlm_mcp.machines import Fleet
    from vers_rlm_mcp.runs import Workbench
    from vers_rlm_mcp.settings import Settings

logger = logging.getLogger(__name__)

SWEEP_DELAY_SECONDS = 0.5
"""Time left to a client that has just started this process to shake hands, before the backend is
loaded and the machines of dead servers are looked for."""

LET_GO_SECONDS = 2.0
"""What closing connections to kernels may take at the end; deleting the machines ends them anyway,
and takes only as long as the fleet lets it."""


class Application:
    """The machines of one server. Inside the ``async with`` they can be used; at its end they go.

    Args:
        settings: Of the server.
        one_client: Whether all calls come from one client, so that there can be a current machine.
    """

    def __init__(self, settings: Settings, *, one_client: bool) -> None:
        self.settings = settings
        self.one_client = one_client
        self._fleet: Fleet | None = None
        self._workbench: Workbench | None = None
        self._opening = anyio.Lock()
        self._resources = AsyncExitStack()

    async def fleet(self) -> Fleet:
        """Where machines are made. The backend is opened by the first call.

        Raises:
            BackendUnavailable: It cannot be opened; the next call tries again.
        """
        from vers_rlm_mcp.runs import open_fleet

        async with self._opening:
            if self._fleet is None:
                self._fleet = await self._resources.enter_async_context(open_fleet(self.settings))
            return self._fleet

    async def workbench(self) -> Workbench:
        """What the low-level tools act through: one for all calls, with one kernel per machine."""
        from vers_rlm_mcp.runs import Workbench

        fleet = await self.fleet()
        if self._workbench is None:
            self._workbench = Workbench(fleet, self.settings)
        return self._workbench

    async def __aenter__(self) -> Self:
        self._background = await anyio.create_task_group().__aenter__()
        self._background.start_soon(self._sweep)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._background.cancel_scope.cancel()
        try:
            await self._background.__aexit__(None, None, None)
        finally:
            with anyio.CancelScope(shield=True):
                await self._let_go()
                await self._resources.aclose()

    async def _let_go(self) -> None:
        if self._workbench:
            with anyio.move_on_after(LET_GO_SECONDS, shield=True):
                await self._workbench.aclose()

    async def _sweep(self) -> None:
        await anyio.sleep(SWEEP_DELAY_SECONDS)
        try:
            swept = await (await self.fleet()).sweep()
        except VersRlmError as error:
            logger.warning("No machines can be made yet: %s", error)
        except Exception:
            # A fault here must not end the server; a call that meets it again reports it.
            logger.exception("The machines of dead servers could not be looked for")
        else:
            if swept:
                logger.info("Deleted machines of servers that ended early: %s", ", ".join(swept))
