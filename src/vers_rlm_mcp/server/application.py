# ruff: noqa: PLC0415 - the rooms below are imported by the first call
"""What all calls of one server share, and how long it lives.

The SDK enters a server's own lifespan once per connection over SSE, and once per server otherwise;
machines belong to the process. So the application is opened by whoever serves it, around all
connections, and the SDK's lifespan is left alone.
"""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Self

import anyio
from mcp.server.mcpserver import MCPServer
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS

from vers_rlm_mcp.errors import VersRlmError

from .live_runs import LiveRuns
from .principals import caller

if TYPE_CHECKING:
    from types import TracebackType

    from mcp.server.mcpserver import Context
    from mcp_types import GetPromptResult, InputRequiredResult

    from vers_rlm_mcp.machines import Fleet
    from vers_rlm_mcp.runs import Workbench
    from vers_rlm_mcp.settings import Settings

logger = logging.getLogger(__name__)

SWEEP_DELAY_SECONDS = 0.5
"""Time left to a client that has just started this process to shake hands, before the backend is
loaded and the machines of dead servers are looked for."""

SWEEP_SECONDS = 600.0
"""Between two looks, for what could not be deleted at its time, and other servers that died."""

LET_GO_SECONDS = 2.0
"""What closing connections to kernels may take at the end; deleting the machines ends them anyway,
and takes only as long as the fleet lets it."""


class Server(MCPServer[Any]):
    """The MCP server of an application."""

    def __init__(self, app: Application, *args: Any, **kwargs: Any) -> None:
        self.app = app
        super().__init__(*args, **kwargs)

    async def get_prompt(
        self,
        name: str,
        arguments: dict[str, Any] | None = None,
        context: Context[Any, Any] | None = None,
    ) -> GetPromptResult | InputRequiredResult:
        """A prompt; an unknown name and missing arguments are the caller's fault, not a crash."""
        try:
            return await super().get_prompt(name, arguments, context)
        except ValueError as error:
            raise MCPError(INVALID_PARAMS, str(error)) from error


def application(context: Context[Any, Any]) -> Application:
    """The application whose server a call came to."""
    server = context.mcp_server
    assert isinstance(server, Server)
    return server.app


class Application:
    """The machines of one server. Inside the ``async with`` they can be used; at its end they go.

    Args:
        settings: Of the server.
        one_client: Whether all calls come from one client, so that there can be a current machine.
        with_principals: Whether every call comes from a principal, which then sees only its own.
    """

    def __init__(
        self, settings: Settings, *, one_client: bool, with_principals: bool = False
    ) -> None:
        self.settings = settings
        self.has_current = one_client and not settings.read_only
        """Whether a call may leave out which machine it means; one is made where there is none."""
        self._with_principals = with_principals
        self._fleet: Fleet | None = None
        self._fleets: dict[str, Fleet] = {}
        self._workbenches: dict[Fleet, Workbench] = {}
        self._opening = anyio.Lock()
        self._resources = AsyncExitStack()
        self._live: LiveRuns | None = None

    async def fleet(self) -> Fleet:
        """Where machines are made and found, as whoever calls may see them.

        The backend is opened by the first call.

        Raises:
            BackendUnavailable: It cannot be opened; the next call tries again.
        """
        fleet = await self._open()
        if not self._with_principals:
            return fleet
        principal = caller()
        if principal is None:
            raise RuntimeError("A call without a principal came through.")
        if principal not in self._fleets:
            self._fleets[principal] = fleet.seen_by(principal)
        return self._fleets[principal]

    @property
    def live(self) -> LiveRuns:
        """The runs under way, which end with the application."""
        if self._live is None:
            self._live = LiveRuns(self._background, self.settings.max_calls)
        return self._live

    async def workbench(self) -> Workbench:
        """What the low-level tools act through: one for all calls of a principal.

        It has one kernel per machine.
        """
        from vers_rlm_mcp.runs import Workbench

        fleet = await self.fleet()
        if fleet not in self._workbenches:
            self._workbenches[fleet] = Workbench(fleet, self.settings)
        return self._workbenches[fleet]

    async def _open(self) -> Fleet:
        from vers_rlm_mcp.machines import open_fleet

        async with self._opening:
            if self._fleet is None:
                self._fleet = await self._resources.enter_async_context(open_fleet(self.settings))
            return self._fleet

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
        with anyio.move_on_after(LET_GO_SECONDS, shield=True):
            for workbench in self._workbenches.values():
                await workbench.aclose()

    async def _sweep(self) -> None:
        await anyio.sleep(SWEEP_DELAY_SECONDS)
        while True:
            await self._sweep_once()
            await anyio.sleep(SWEEP_SECONDS)

    async def _sweep_once(self) -> None:
        try:
            swept = await (await self._open()).sweep()
        except VersRlmError as error:
            logger.warning("No machines can be made yet: %s", error)
        except Exception:
            # A fault here must not end the server; a call that meets it again reports it.
            logger.exception("The machines of dead servers could not be looked for")
        else:
            if swept:
                logger.info("Deleted what was left over: %s", ", ".join(swept))
