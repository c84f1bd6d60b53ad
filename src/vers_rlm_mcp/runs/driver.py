"""The driver: performs what the engine asks, and answers what a cell asks while it runs.

A run's machines, kernel, budget and journal live exactly as long as `run`: whatever way it ends,
its machines are gone afterwards, but for the one that was to be kept.
"""

from __future__ import annotations

import secrets
import time
from contextlib import ExitStack
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING

import anyio

from vers_rlm_mcp import rlm
from vers_rlm_mcp.errors import (
    BudgetExceeded,
    KernelError,
    MachineError,
    ModelError,
    ModelUnavailable,
    UsageError,
)

from .calls import RunCalls, lost_variables, not_carried
from .inputs import bring_in, check_inputs
from .record import Journal
from .request import RunRequest, RunResult, check_limits, check_prices, limits
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

OUTPUT_PIECES = 5_000
"""Pieces of a cell's output that are published as they come. A kernel sends some 200 a second at
most; a guest that makes them smaller must not fill the journal."""


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
        self._model = model
        self._settings = settings
        self._publish = publish
        self._limits = limits(request, settings)
        self._started = time.monotonic()
        self._budget = rlm.Budget(self._limits, now=self._started)
        self._bench = Workbench(fleet, settings, run=run_id, on_event=publish)
        self._calls = RunCalls(self._bench, sub_model, self._budget, publish)
        self._sub_model = sub_model.name
        self._warnings: list[str] = []
        self._output: list[str] = []
        """What the cell under way has printed, in pieces; the kernel's limit bounds it."""
        self._home = ExitStack()
        """Holds the kernel for this run alone."""

    async def perform(
        self, signature: rlm.Signature, inputs: Mapping[str, JsonValue | Path]
    ) -> RunResult:
        """The whole run, clean-up included."""
        try:
            try:
                task = await self._set_up(signature, inputs)
                outcome = await self._drive(task)
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
            self._calls.sub_calls,
            self._seconds(),
            tuple(self._warnings),
        )
        self._publish(_finished(result))
        return result

    async def _set_up(
        self, signature: rlm.Signature, inputs: Mapping[str, JsonValue | Path]
    ) -> rlm.Task:
        """Get machine, kernel and inputs ready, within the run's time."""
        with anyio.move_on_at(self._deadline()):
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
            self._budget.reserve_machines(1)
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
                self._model.name,
                self._sub_model,
                request.max_iterations,
            )
        )
        facts = _facts(machine, (await machine.info()).spec, self._settings)
        return rlm.Task(
            signature,
            variables,
            files,
            facts,
            request.instructions or "",
            request.max_iterations,
            request.max_llm_calls,
        )

    async def _drive(self, task: rlm.Task) -> rlm.Outcome:
        """Answer the engine until it has the outcome."""
        engine = rlm.run(task)
        reply: rlm.Reply = None
        while True:
            try:
                asked = engine.send(reply)
            except StopIteration as stop:
                return stop.value
            reply = await self._answer(asked)

    async def _answer(self, asked: rlm.Request) -> rlm.Reply:
        """Perform one request; running out of time or budget stops the run."""
        if isinstance(asked, rlm.Emit):
            return self._publish(asked.event)
        with anyio.move_on_at(self._deadline()):
            try:
                if isinstance(asked, rlm.CallModel):
                    return await self._call_model(asked)
                return await self._run_cell(asked)
            except (BudgetExceeded, KernelError, MachineError) as error:
                return rlm.Stop(str(error), "".join(self._output))
        reason = f"The run's time limit of {self._limits.seconds:g} s was reached."
        return rlm.Stop(reason, "".join(self._output))

    async def _call_model(self, asked: rlm.CallModel) -> rlm.Reply:
        if asked.purpose == "step":
            self._budget.reserve_iteration(time.monotonic())
        else:
            self._budget.check(time.monotonic())
        self._publish(rlm.ModelAsked(asked.step, asked.purpose, len(asked.messages)))
        started = time.monotonic()
        try:
            reply = await self._model.complete(asked.messages)
        except ModelError as error:
            # At the first step nothing is lost, and the user has to change something.
            if asked.step == 1 and isinstance(error, ModelUnavailable):
                raise
            return rlm.ModelFailure(str(error))
        self._budget.settle(reply.usage)
        seconds = time.monotonic() - started
        self._publish(rlm.ModelReplied(asked.step, asked.purpose, reply.text, reply.usage, seconds))
        return rlm.ModelReply(reply.text, reply.usage, reply.stop_reason)

    async def _run_cell(self, asked: rlm.RunCell) -> rlm.CellReply:
        self._publish(rlm.CellStarted(asked.step, asked.code))
        self._calls.step = asked.step
        kernel = self._bench.home
        assert kernel

        def publish(text: str) -> None:
            self._output.append(text)
            if len(self._output) <= OUTPUT_PIECES:
                self._publish(rlm.CellOutput(asked.step, text))

        result = await kernel.run(
            asked.code,
            timeout=self._settings.cell_timeout,
            handler=self._calls,
            on_output=publish,
        )
        self._output.clear()
        final = result.final and rlm.FinalCall(result.final.args, result.final.kwargs)
        return rlm.CellReply(
            result.status,
            result.output,
            result.error,
            final,
            result.seconds,
            (*lost_variables(result), *self._calls.take_notes(), *self._running_low()),
        )

    def _running_low(self) -> tuple[str, ...]:
        low = self._budget.low(time.monotonic())
        return (low,) if low else ()

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

    def _deadline(self) -> float:
        """The end of the run's time, on the event loop's clock."""
        left = self._budget.seconds_left(time.monotonic())
        return anyio.current_time() + (inf if left is None else left)

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
