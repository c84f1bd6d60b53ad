"""The driver: gets a run's machine and inputs ready, holds its conversation, and clears away.

A run's machines, kernel, budget and journal live exactly as long as `run`: whatever way it ends,
its machines are gone afterwards, but for the one that was to be kept.
"""

from __future__ import annotations

import secrets
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio

from vers_rlm_mcp import rlm
from vers_rlm_mcp.errors import KernelError, MachineError, UsageError

from .calls import not_carried
from .conversation import Conversation
from .inputs import bring_in, check_inputs
from .record import Journal
from .request import RunRequest, RunResult, check_limits, check_prices, limits
from .run_calls import RunCalls
from .tree import Tree
from .workbench import Workbench

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pydantic import JsonValue

    from vers_rlm_mcp.machines import Fleet, Machine, MachineSpec
    from vers_rlm_mcp.models import Model
    from vers_rlm_mcp.settings import Settings

LET_GO_SECONDS = 2.0
"""What closing connections to kernels may take; deleting the machines ends them anyway."""


async def run(
    request: RunRequest,
    *,
    fleet: Fleet,
    model: Model,
    sub_model: Model,
    settings: Settings,
    on_event: Callable[[rlm.Event], None] = lambda _: None,
) -> RunResult:
    """Perform one run, and leave none of its machines behind but the one to be kept.

    Events reach `on_event` as they happen; it must not block. Cancelling ends the run at once.

    Raises:
        UsageError: The request does not make sense; no machine was made for it, unless it took
            the machine to see that.
        MachineError: No machine could be made or made ready. One that is lost later ends the run
            with what there is.
        KernelError: The same for the kernel. `KernelBusy`: another run or cell uses it.
        ModelUnavailable: The first call showed that the model cannot be used.
    """
    signature, inputs = check_request(request)
    check_prices(limits(request, settings), (model, sub_model))
    run_id = f"run-{secrets.token_hex(8)}"
    with Journal(settings.state_dir / "runs" / run_id) as journal:

        def publish(event: rlm.Event) -> None:
            journal.append(event.to_json())
            on_event(event)

        driver = _Driver(run_id, request, fleet, model, sub_model, settings, publish)
        result = await driver.perform(signature, inputs)
        problems = (journal.problem,) if journal.problem else ()
        return replace(result, warnings=(*result.warnings, *problems))


def check_request(
    request: RunRequest,
) -> tuple[rlm.Signature, Mapping[str, JsonValue | Path]]:
    """The signature of a request, and the value of every input; a path for one from a file.

    `run` does this first. Whoever has to choose models before says with it what is wrong with the
    request itself, which the caller may be able to mend at once.

    Raises:
        UsageError: The request does not make sense.
    """
    signature = rlm.Signature.parse(request.signature)
    check_limits(request)
    return signature, check_inputs(signature, request.inputs, request.files)


class _Driver:
    """One run under way."""

    def __init__(
        self,
        run_id: str,
        request: RunRequest,
        fleet: Fleet,
        model: Model,
        sub_model: Model,
        settings: Settings,
        publish: Callable[[rlm.Event], None],
    ) -> None:
        self._id = run_id
        self._request = request
        self._fleet = fleet
        self._settings = settings
        self._publish = publish
        self._tree = Tree(run_id, model, sub_model, settings, publish, request.max_depth)
        self._limits = limits(request, settings)
        self._started = time.monotonic()
        self._budget = rlm.Budget(self._limits, now=self._started)
        self._bench = Workbench(fleet, settings, run=run_id, on_event=publish)
        self._calls = RunCalls(self._tree, self._bench, self._budget)
        self._warnings: list[str] = []
        self._home = ExitStack()
        """Holds the kernel for this run alone."""

    async def perform(
        self, signature: rlm.Signature, inputs: Mapping[str, JsonValue | Path]
    ) -> RunResult:
        """The whole run, clean-up included."""
        try:
            try:
                task = await self._set_up(signature, inputs)
                conversation = Conversation(self._tree, self._bench, self._budget, self._calls)
                outcome = await conversation.drive(task)
                machine, kept = await self._keep()
            finally:
                with self._home:
                    await self._clean_up()
        except BaseException as error:
            self._publish(self._broken_off(error))
            raise
        result = RunResult(
            self._id,
            outcome.status,
            outcome.outputs,
            outcome.steps,
            outcome.reason,
            outcome.final_reasoning,
            machine.id,
            kept,
            machine.backend,
            machine.capabilities.isolation,
            machine.capabilities.fidelity,
            self._budget.usage,
            self._budget.sub_calls,
            self._seconds(),
            self._request.verify if outcome.verified else None,
            tuple(self._warnings),
        )
        self._publish(_finished(result))
        return result

    async def _set_up(
        self, signature: rlm.Signature, inputs: Mapping[str, JsonValue | Path]
    ) -> rlm.Task:
        """Get machine, kernel and inputs ready, within the run's time."""
        with anyio.move_on_after(self._limits.seconds):
            return await self._get_ready(signature, inputs)
        raise MachineError(
            f"Getting the machine and the inputs ready took longer than the run's limit of "
            f"{self._limits.seconds:g} s. Allow the run more seconds, or give it less to carry."
        )

    async def _get_ready(
        self, signature: rlm.Signature, inputs: Mapping[str, JsonValue | Path]
    ) -> rlm.Task:
        request = self._request
        if request.machine_id:
            await self._bench.switch(request.machine_id)
        else:
            self._budget.reserve_machines(1, self._started)
            await self._bench.create(request.spec)
        machine = await self._bench.machine()
        self._home.enter_context(self._bench.using_kernel(machine.id))
        kernel = self._bench.home = await self._bench.kernel()
        variables, files = await bring_in(machine, kernel, inputs, request.files)
        self._publish(
            rlm.RunStarted(
                self._id,
                str(signature),
                machine.id,
                self._tree.model.name,
                self._tree.sub_model.name,
                request.max_iterations,
            )
        )
        facts = _facts(machine, (await machine.info()).spec, self._settings)
        task = rlm.Task(
            signature,
            variables,
            files,
            facts,
            request.instructions or "",
            request.max_iterations,
            request.max_llm_calls,
            request.verify,
        )
        self._calls.task = task
        return task

    async def _keep(self) -> tuple[Machine, bool]:
        """The machine that is current at the end, and whether it will still be there."""
        machine = await self._bench.machine()
        if machine.id == self._request.machine_id or not self._request.keep_machine:
            return machine, machine.id == self._request.machine_id
        # Whatever happens now, what the run has found out must not be lost with its machine.
        try:
            await self._fleet.keep(machine.id)
        except (MachineError, UsageError) as error:
            self._warnings.append(f"The machine could not be kept: {error}")
            return machine, False
        try:
            carried = await self._bench.save_variables(machine)
            self._warnings += not_carried(carried, "the kept machine")
        except (KernelError, MachineError) as error:
            self._warnings.append(f"The variables could not be saved: {error}")
        return machine, True

    async def _clean_up(self) -> None:
        with anyio.move_on_after(LET_GO_SECONDS, shield=True):
            await self._bench.aclose()
        self._warnings += await self._fleet.release_run(self._id)  # shielded and bounded by itself

    def _seconds(self) -> float:
        return time.monotonic() - self._started

    def _broken_off(self, error: BaseException) -> rlm.RunFinished:
        cancelled = isinstance(error, anyio.get_cancelled_exc_class())
        return rlm.RunFinished(
            self._id,
            "cancelled" if cancelled else "failed",
            {},
            "The run was cancelled." if cancelled else str(error),
            0,
            self._budget.usage,
            self._seconds(),
        )


def _facts(machine: Machine, spec: MachineSpec, settings: Settings) -> rlm.MachineFacts:
    can = machine.capabilities
    sizes = {
        "processors": spec.vcpu_count,
        "memory": spec.mem_size_mib and f"{spec.mem_size_mib} MiB",
        "disk": spec.fs_size_mib and f"{spec.fs_size_mib} MiB",
        "one cell": f"{settings.cell_timeout:g} s",
    }
    limits = {name: str(size) for name, size in sizes.items() if size}
    return rlm.MachineFacts(can.isolation, can.fidelity, can.root, can.network, limits, can.notes)


def _finished(result: RunResult) -> rlm.RunFinished:
    return rlm.RunFinished(
        result.run_id,
        result.status,
        dict(result.outputs),
        result.reason,
        len(result.steps),
        result.usage,
        result.seconds,
        result.machine_id,
        result.kept,
    )
