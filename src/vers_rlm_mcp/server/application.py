# ruff: noqa: PLC0415 - the rooms below are imported by the first call
"""The machines and runs of one server, and how long they live.

The SDK enters a server's lifespan once per connection over SSE, and once per server otherwise, but
machines belong to the process. The transport opens the application around all connections.
"""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

import anyio
from anyio import to_thread

from vers_rlm_mcp.errors import UsageError, VersRlmError

from .cancellations import Cancellations
from .kept_answers import KeptAnswers
from .live_runs import LiveRuns
from .principals import caller

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from types import TracebackType

    from mcp.server.mcpserver import Context

    from vers_rlm_mcp.machines import Fleet
    from vers_rlm_mcp.runs import RunRecord, Workbench
    from vers_rlm_mcp.settings import Settings
    from vers_rlm_mcp.store import Journals, StoredJournal

    from .live_runs import LiveRun

logger = logging.getLogger(__name__)

SWEEP_DELAY_SECONDS = 0.5
"""Time for the client that started this process to finish its handshake before the backend is
loaded and the machines of dead servers are looked for."""

SWEEP_SECONDS = 600.0
"""Between two sweeps for machines that could not be deleted in time, or whose server died."""

CLOSE_SECONDS = 2.0
"""For closing connections to kernels at the end. Deleting the machines ends them anyway; how long
that may take, the fleet bounds."""

MAX_IDS = 50
"""Machines that an error lists."""

NO_CURRENT = "Over HTTP, or with --read-only, there is no current VM"


def application(context: Context[Any, Any]) -> Application:
    """The application of the server that received a call."""
    return context.request_context.lifespan_context


class Application:
    """The machines and runs of one server. They can be used inside ``async with``, and end with it.

    Args:
        settings: The server's settings.
        one_client: Whether all calls come from one client, so that there can be a current machine.
        with_principals: Whether every call comes from a principal, which sees only what is its own.
    """

    def __init__(
        self, settings: Settings, *, one_client: bool, with_principals: bool = False
    ) -> None:
        self.settings = settings
        self.has_current = one_client and not settings.read_only
        """Whether a call may omit its machine; one is made if there is none."""
        self.cancellations = Cancellations()
        self.kept_answers = KeptAnswers()
        self._with_principals = with_principals
        self._fleet: Fleet | None = None
        self._fleets: dict[str, Fleet] = {}
        self._workbenches: dict[Fleet, Workbench] = {}
        self._opening = anyio.Lock()
        self._resources = AsyncExitStack()
        self._turns: dict[str, tuple[anyio.Lock, int]] = {}
        """Locks, and how many calls hold or await each."""

    async def fleet(self) -> Fleet:
        """The machines that the caller may see.

        The first call opens the backend.

        Raises:
            BackendUnavailable: It cannot be opened; the next call tries again.
        """
        fleet = await self._open()
        principal = self._principal()
        if principal is None:
            return fleet
        if principal not in self._fleets:
            self._fleets[principal] = fleet.seen_by(principal)
        return self._fleets[principal]

    def journals(self) -> Journals:
        """The journals of the runs that the caller may see."""
        from vers_rlm_mcp.store import Journals

        return Journals(self.settings.state_dir, self._principal())

    async def find_run(self, run_id: str) -> tuple[StoredJournal, LiveRun | None]:
        """The journal of a run, and the run itself if it is under way here or ended lately.

        Raises:
            UnknownHandle: The caller has no such run.
        """
        return self.journals().of(run_id), self.live_runs.get(run_id)

    async def load_run(self, run_id: str) -> RunRecord:
        """A run on record.

        Raises:
            UnknownHandle: The caller has no such run.
        """
        from vers_rlm_mcp.runs import load_record

        return await to_thread.run_sync(load_record, self.journals().of(run_id))

    async def workbench(self) -> Workbench:
        """The caller's workbench, on which the tools act. It has one kernel per machine."""
        from vers_rlm_mcp.runs import Workbench

        fleet = await self.fleet()
        if fleet not in self._workbenches:
            self._workbenches[fleet] = Workbench(fleet, self.settings)
        return self._workbenches[fleet]

    async def target(self, machine_id: str | None) -> tuple[Workbench, str]:
        """The workbench for a call, and the id of the machine that it acts on, which exists.

        Raises:
            UsageError: The call names no machine, and there is no current one.
            UnknownHandle: There is no such machine.
        """
        bench = await self.workbench()
        if self.has_current:
            return bench, (await bench.machine(machine_id)).id
        if not machine_id:
            machines, _ = await bench.list()
            ids = ", ".join(info.id for info in machines[-MAX_IDS:])
            raise UsageError(
                f"{NO_CURRENT}: pass vmId. "
                + (f"There are: {ids}." if ids else "There is none yet; vmCreate makes one.")
            )
        # With its own current machine, because one client's cells must not change another's.
        return bench.at(machine_id), (await bench.machine(machine_id)).id

    @asynccontextmanager
    async def turn(self, key: str) -> AsyncGenerator[None]:
        """Wait until no other call of this server acts on the same thing, in order of arrival."""
        lock, waiting = self._turns.get(key) or (anyio.Lock(), 0)
        self._turns[key] = lock, waiting + 1
        try:
            async with lock:
                yield
        finally:
            lock, waiting = self._turns.pop(key)
            if waiting > 1:
                self._turns[key] = lock, waiting - 1

    async def machine_ids(self) -> Sequence[str]:
        """The ids of the caller's machines, newest first."""
        machines, _ = await (await self.workbench()).list()
        return [info.id for info in machines[::-1]]

    async def run_ids(self) -> Sequence[str]:
        """The ids of the caller's runs, newest first."""
        journals = await to_thread.run_sync(self.journals().all)
        return [journal.run_id for journal in journals[::-1]]

    async def step_numbers(self, run_id: str) -> Sequence[str]:
        """The steps of a run, the last first."""
        steps = (await self.load_run(run_id)).steps
        return [str(step.number) for step in reversed(steps)]

    async def output_names(self, run_id: str) -> Sequence[str]:
        """The outputs of a run."""
        result = (await self.load_run(run_id)).result
        return list(result.outputs) if result else []

    def _principal(self) -> str | None:
        principal = caller() if self._with_principals else None
        if self._with_principals and principal is None:
            raise RuntimeError("A call without a principal was let through.")
        return principal

    async def _open(self) -> Fleet:
        from vers_rlm_mcp.machines import open_fleet

        async with self._opening:
            if self._fleet is None:
                self._fleet = await self._resources.enter_async_context(open_fleet(self.settings))
            return self._fleet

    async def __aenter__(self) -> Self:
        self._background = await anyio.create_task_group().__aenter__()
        self._background.start_soon(self._sweep)
        self.live_runs = LiveRuns(self._background, self.settings.max_calls)
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
                await self._close_workbenches()
                await self._resources.aclose()

    async def _close_workbenches(self) -> None:
        with anyio.move_on_after(CLOSE_SECONDS, shield=True):
            for workbench in self._workbenches.values():
                await workbench.aclose()

    async def _sweep(self) -> None:
        await anyio.sleep(SWEEP_DELAY_SECONDS)
        while True:
            await self._sweep_once()
            await anyio.sleep(SWEEP_SECONDS)

    async def _sweep_once(self) -> None:
        try:
            swept = await (await self._open()).sweep(patient=True)
        except VersRlmError as error:
            logger.warning("No machines can be made yet: %s", error)
        except Exception:
            # A fault here must not end the server; a call that meets it again reports it.
            logger.exception("The machines of dead servers could not be swept")
        else:
            if swept:
                logger.info("Deleted what was left over: %s", ", ".join(swept))
