"""The driver: performs what the engine asks, and answers what a cell asks while it runs.

A run's machines, kernel, budget and journal live exactly as long as `run`: whatever way it ends,
its machines are gone afterwards, but for the one that was to be kept.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import anyio
from pydantic import JsonValue

from vers_rlm_mcp import rlm
from vers_rlm_mcp.errors import (
    BudgetExceeded,
    InputError,
    MachineError,
    ModelError,
    ModelUnavailable,
)

from .calls import RunCalls, lost_variables
from .inputs import bring_in, check_inputs
from .record import Journal
from .workbench import Workbench

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vers_rlm_mcp.machines import Fleet, Machine, MachineSpec
    from vers_rlm_mcp.messages import Usage
    from vers_rlm_mcp.models import Model
    from vers_rlm_mcp.settings import Settings

LET_GO_SECONDS = 2.0
"""What closing connections to kernels may take; deleting the machines ends them anyway."""

N = TypeVar("N", int, float)


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What a run is asked to do; see the tool `vers_rlm` for the meaning of each part."""

    signature: str
    inputs: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    instructions: str | None = None
    max_iterations: int = rlm.MAX_ITERATIONS
    max_llm_calls: int = rlm.MAX_SUB_CALLS
    machine_id: str | None = None
    """Work on this machine; it is not deleted. None makes one."""
    spec: MachineSpec | None = None
    keep_machine: bool = False
    """Keep the machine that is current at the end."""
    files: Mapping[str, Path] = field(default_factory=dict[str, Path])
    """Names in the machine to host paths that the user may read. A file whose name is that of a
    text input of the signature becomes that input's value."""
    max_seconds: float | None = None
    max_tokens: int | None = None
    max_usd: float | None = None


@dataclass(frozen=True, slots=True)
class RunResult:
    """What came of a run."""

    run_id: str
    status: Literal["finished", "extracted", "partial"]
    outputs: Mapping[str, JsonValue]
    steps: tuple[rlm.Step, ...]
    reason: str
    """A whole sentence: why it ended."""
    final_reasoning: str
    machine_id: str
    kept: bool
    backend: str
    isolation: str
    fidelity: str
    usage: Usage
    """Of the whole run, sub-calls included."""
    sub_calls: int
    seconds: float
    warnings: tuple[str, ...] = ()


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
        UsageError: The request does not make sense; no machine was made for it.
        MachineError: No machine could be made, or it was lost.
        ModelUnavailable: The first call showed that the model cannot be used.
    """
    signature = rlm.Signature.parse(request.signature)
    inputs = check_inputs(signature, request.inputs, request.files)
    _check_prices(_limits(request, settings), (model, sub_model))
    run_id = f"run-{secrets.token_hex(8)}"
    with Journal(settings.state_dir / "runs" / run_id) as journal:

        def publish(event: rlm.Event) -> None:
            journal.append(event.to_json())
            on_event(event)

        driver = _Driver(run_id, request, fleet, model, sub_model, settings, publish)
        return await driver.perform(signature, inputs)


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
        self._limits = _limits(request, settings)
        self._started = time.monotonic()
        self._budget = rlm.Budget(self._limits, now=self._started)
        self._bench = Workbench(fleet, settings, run=run_id, on_event=publish)
        self._calls = RunCalls(self._bench, sub_model, self._budget, publish)
        self._sub_model = sub_model.name

    async def perform(
        self, signature: rlm.Signature, inputs: Mapping[str, JsonValue | Path]
    ) -> RunResult:
        """The whole run, clean-up included."""
        warnings: list[str] = []
        try:
            try:
                task = await self._set_up(signature, inputs)
                outcome = await self._drive(task)
                machine, kept = await self._keep()
            finally:
                warnings += await self._clean_up()
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
            tuple(warnings),
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
            except BudgetExceeded as error:
                return rlm.Stop(str(error))
        return rlm.Stop(f"The run's time limit of {self._limits.seconds:g} s was reached.")

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
        result = await kernel.run(
            asked.code,
            timeout=self._settings.cell_timeout,
            handler=self._calls,
            on_output=lambda text: self._publish(rlm.CellOutput(asked.step, text)),
        )
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
        made_here = machine.id != self._request.machine_id
        if made_here and self._request.keep_machine:
            await self._bench.save_variables(machine)
            await self._fleet.keep(machine.id)
        return machine, self._request.keep_machine or not made_here

    async def _clean_up(self) -> Sequence[str]:
        with anyio.move_on_after(LET_GO_SECONDS, shield=True):
            await self._bench.aclose()
        return await self._fleet.release_run(self._id)  # shielded and bounded by itself

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


def _check_prices(limits: rlm.Limits, models: Sequence[Model]) -> None:
    unknown = sorted({model.name for model in models if model.price is None})
    if limits.usd is not None and unknown:
        raise InputError(
            f"A limit of {limits.usd:g} USD cannot be held, since the price of "
            f"{' and '.join(unknown)} is not known. Limit the tokens instead, or choose a model "
            "with a known price."
        )


def _limits(request: RunRequest, settings: Settings) -> rlm.Limits:
    """What a run may use: what it asks for, within what the settings allow."""
    return rlm.Limits(
        iterations=request.max_iterations,
        sub_calls=request.max_llm_calls,
        tokens=_lower(request.max_tokens, settings.max_tokens),
        usd=_lower(request.max_usd, settings.max_usd),
        seconds=_lower(request.max_seconds, settings.max_seconds),
        machines=settings.max_machines,
    )


def _lower(asked: N | None, allowed: N | None) -> N | None:
    return asked if allowed is None else allowed if asked is None else min(asked, allowed)


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
