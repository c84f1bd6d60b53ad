"""The driver: gets a run's machine and inputs ready, holds its conversation, and clears away.

A run's machines, kernel, budget and journal live exactly as long as `run`: whatever way it ends,
its machines are gone afterwards, but for the one that was to be kept.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio

from vers_rlm_mcp import rlm
from vers_rlm_mcp.errors import KernelError, MachineError, UnknownHandle, UsageError
from vers_rlm_mcp.store import Journal, Journals

from . import events
from .budget import Budget
from .checkpoints import Checkpoints, restore
from .conversation import Conversation
from .declarations import repl_functions, reserved_names
from .history import prune_checkpoints, prune_to_size
from .inputs import bring_in, check_inputs, recordable
from .notes import not_carried
from .request import RunRequest, RunResult, check_limits, check_prices, limits
from .tree import Tree
from .workbench import Workbench

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    from pydantic import JsonValue

    from vers_rlm_mcp.machines import Fleet, Machine, MachineSpec
    from vers_rlm_mcp.models import Model
    from vers_rlm_mcp.settings import Settings

MIB = 1 << 20

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
    journal: Journal | None = None,
) -> RunResult:
    """Perform one run, and leave none of its machines behind but the one to be kept.

    Events reach `on_event` as they happen; it must not block. Cancelling ends the run at once.
    `journal` is a new one, which the run closes; without it, the run opens its own.

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
    with journal or Journals(settings.state_dir, fleet.principal).new() as journal:
        publish = publisher(journal, on_event)
        tree = Tree(journal.run_id, model, sub_model, settings, publish, request.max_depth)
        driver = Driver(request, fleet, tree)
        result = await driver.perform(lambda: driver.begin(signature, inputs))
        return with_problems(result, journal)


def publisher(
    journal: Journal, on_event: Callable[[rlm.Event], None]
) -> Callable[[rlm.Event], None]:
    """Where a run's events go: first into its journal."""

    def publish(event: rlm.Event) -> None:
        journal.append(event.to_json())
        on_event(event)

    return publish


def with_problems(result: RunResult, journal: Journal) -> RunResult:
    """The result, with what went wrong with the journal."""
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
    signature = rlm.Signature.parse(request.signature, reserved=reserved_names())
    check_limits(request)
    return signature, check_inputs(signature, request.inputs, request.files)


class Driver:
    """One run under way.

    Args:
        request: What is asked of it.
        fleet: Where its machines come from.
        tree: What its conversations share.
        last: The checkpoint that it goes on from, if it does.
    """

    def __init__(
        self,
        request: RunRequest,
        fleet: Fleet,
        tree: Tree,
        last: events.CheckpointMade | None = None,
    ) -> None:
        self._request = request
        self._fleet = fleet
        self._tree = tree
        self._last = last
        self._limits = limits(request, tree.settings)
        self._started = time.monotonic()
        goes_on = tree.past.run_id == tree.run_id  # else what is on record is another run's
        self._budget = Budget(
            self._limits,
            now=self._started,
            usage=tree.past.usage if goes_on else None,
            used=last and last.used,
            ahead=tree.past.ahead(last and last.step) if goes_on else None,
        )
        self._bench = Workbench(fleet, tree.settings, run=tree.run_id, on_event=tree.publish)
        self._checkpoints = Checkpoints(
            tree.settings, self._bench, self._budget, tree.publish, last
        )
        self._warnings: list[str] = []
        self._notes: list[str] = []
        """What the model is told with the result of its first cell."""

    async def perform(
        self, begin: Callable[[], Awaitable[rlm.Task]], replies: Sequence[rlm.Reply] = ()
    ) -> RunResult:
        """The whole run, clean-up included.

        Args:
            begin: Gets machine, kernel and inputs ready.
            replies: What its engine was told before, where it goes on.
        """
        try:
            try:
                task = await self._set_up(begin)
                conversation = Conversation(
                    self._tree,
                    self._bench,
                    self._budget,
                    task,
                    checkpoints=self._checkpoints,
                    children=self._last.children if self._last else 0,
                    notes=self._notes,
                )
                outcome = await conversation.drive(replies)
                machine, kept = await self._keep()
            finally:
                await self._clean_up()
        except BaseException as error:
            self._tree.publish(self._broken_off(error))
            raise
        if self._checkpoints.problem:
            self._warnings.append(self._checkpoints.problem)
        result = RunResult(
            run_id=self._tree.run_id,
            status=outcome.status,
            outputs=outcome.outputs,
            steps=outcome.steps,
            reason=outcome.reason,
            final_reasoning=outcome.final_reasoning,
            machine_id=machine.id,
            kept=kept,
            backend=machine.backend,
            isolation=machine.capabilities.isolation,
            fidelity=machine.capabilities.fidelity,
            usage=self._budget.usage,
            sub_calls=self._budget.sub_calls,
            seconds=self._seconds(),
            verified=self._request.verify if outcome.verified else None,
            warnings=tuple(self._warnings),
        )
        self._tree.publish(result.event())
        journals = Journals(self._tree.settings.state_dir, self._fleet.principal)
        await prune_checkpoints(self._fleet, journals)
        await prune_to_size(self._fleet, journals, self._tree.settings.max_record_mib * MIB)
        return result

    async def begin(
        self, signature: rlm.Signature, inputs: Mapping[str, JsonValue | Path]
    ) -> rlm.Task:
        """Get the machine that is asked for, its kernel and the inputs ready."""
        request = self._request
        if request.machine_id:
            await self._bench.switch(request.machine_id)
        else:
            self._budget.reserve_machines(1, self._started)
            await self._bench.create(request.spec)
        machine = await self._bench.machine()
        kernel = await self._bench.move_in(machine.id)
        variables, files = await bring_in(machine, kernel, inputs, request.files)
        facts = _facts(machine, (await machine.info()).spec, self._tree.settings)
        task = rlm.Task(
            signature,
            inputs=variables,
            files=files,
            machine=facts,
            instructions=request.instructions or "",
            max_iterations=request.max_iterations,
            max_sub_calls=request.max_llm_calls,
            verify=request.verify,
            functions=repl_functions(),
        )
        self.announce(task, recordable(inputs) if not request.files else None)
        return task

    async def begin_at(self, checkpoint: events.CheckpointMade, task: rlm.Task) -> rlm.Task:
        """Get the machines of a checkpoint ready, of this run or of another."""
        self._budget.reserve_machines(1 + bool(checkpoint.current_commit_id), self._started)
        try:
            self._notes += await restore(self._bench, checkpoint)
        except UnknownHandle as error:
            raise UsageError(
                f"The checkpoint at step {checkpoint.step} was deleted meanwhile: {error}"
            ) from error
        return task

    def announce(self, task: rlm.Task, inputs: Mapping[str, JsonValue] | None = None) -> None:
        """Publish that a run begins."""
        assert self._bench.home_id
        self._tree.publish(
            events.RunStarted(
                run_id=self._tree.run_id,
                signature=str(task.signature),
                machine_id=self._bench.home_id,
                model=self._tree.model.name,
                sub_model=self._tree.sub_model.name,
                max_steps=task.max_iterations,
                task=task.to_json(),
                options=self._request.options(),
                inputs=inputs,
            )
        )

    async def _set_up(self, begin: Callable[[], Awaitable[rlm.Task]]) -> rlm.Task:
        """Get machine, kernel and inputs ready, within the run's time."""
        with anyio.move_on_after(self._limits.seconds):
            return await begin()
        raise MachineError(
            f"Getting the machine and the inputs ready took longer than the run's limit of "
            f"{self._limits.seconds:g} s. Allow the run more seconds, or give it less to carry."
        )

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
        # This is shielded and bounded by itself.
        self._warnings += await self._fleet.release_run(self._tree.run_id)

    def _seconds(self) -> float:
        return time.monotonic() - self._started

    def _broken_off(self, error: BaseException) -> events.RunFinished:
        cancelled = isinstance(error, anyio.get_cancelled_exc_class())
        return events.RunFinished(
            run_id=self._tree.run_id,
            status="cancelled" if cancelled else "failed",
            outputs={},
            reason="The run was cancelled." if cancelled else str(error),
            steps=0,
            usage=self._budget.usage,
            seconds=self._seconds(),
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
