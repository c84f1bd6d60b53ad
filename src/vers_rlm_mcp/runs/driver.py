"""The driver: prepares a run's machine and inputs, drives its conversation, and cleans up.

However a run ends, its machines are gone afterwards, except for one that is to be kept.
"""

from __future__ import annotations

import logging
import secrets
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from anyio import to_thread

from vers_rlm_mcp import rlm
from vers_rlm_mcp.errors import KernelError, MachineError, UnknownHandle, UsageError
from vers_rlm_mcp.store import Journal, Journals

from . import events
from .budget import Budget
from .checkpoints import Checkpoints, restore
from .context import RunContext
from .conversation import Conversation
from .declarations import repl_functions, reserved_inputs
from .handover import HandedOver, hand_over, name_files
from .history import prune_checkpoints, prune_to_size
from .inputs import bring_in, check_inputs, recordable
from .notes import not_carried
from .reply_source import Replies
from .request import RunRequest, RunResult, check_prices, limits
from .text_files import open_text
from .workbench import Workbench

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pydantic import JsonValue

    from vers_rlm_mcp.machines import Fleet, Machine, MachineSpec
    from vers_rlm_mcp.models import Model
    from vers_rlm_mcp.settings import Settings

logger = logging.getLogger(__name__)

MIB = 1 << 20

MARK_BYTES = 4
"""Random bytes of a run's mark: more than data can try to guess."""

DISCONNECT_SECONDS = 2.0
"""How long closing connections to kernels may take; deleting the machines ends them anyway."""


async def run(
    request: RunRequest,
    *,
    fleet: Fleet,
    model: Model,
    sub_model: Model,
    settings: Settings,
    on_event: Callable[[rlm.Event], None] = lambda _: None,
    journal: Journal | None = None,
    beginning: Beginning | None = None,
) -> RunResult:
    """Perform a run. Its machines are deleted at the end, except for one that is to be kept.

    Events reach `on_event` as they happen; it must not block. Cancelling ends the run at once.
    `journal` is a new one, which the run closes; without it, the run opens its own. `beginning` is
    what `check_request` returned for the request; without it, the run checks the request itself.

    Raises:
        UsageError: The request does not make sense; no machine was made for it, unless it took
            the machine to see that.
        MachineError: No machine could be made or made ready. One that is lost later ends the run
            with what there is.
        KernelError: The same for the kernel. `KernelBusy`: another run or cell uses it.
        ModelUnavailable: The first call showed that the model cannot be used.
    """
    beginning = beginning or check_request(request)
    check_prices(limits(request, settings), (model, sub_model))
    with ExitStack() as stack:
        if journal:
            stack.enter_context(journal)
        beginning = await to_thread.run_sync(beginning.open_texts, stack)
        journal = journal or stack.enter_context(
            Journals(settings.state_dir, fleet.principal).new()
        )
        context = RunContext(
            request=request,
            fleet=fleet,
            settings=settings,
            replies=Replies(model, sub_model),
            journal=journal,
            on_event=on_event,
        )
        return await Driver(context).perform(beginning)


def check_request(request: RunRequest) -> Beginning:
    """Check a request, and return its beginning for `run`.

    A caller that first chooses models uses this to report what is wrong with the request itself.

    Raises:
        UsageError: The request does not make sense.
    """
    signature = rlm.Signature.parse(request.signature, reserved=reserved_inputs())
    return Beginning(signature, check_inputs(signature, request.inputs, request.files))


@dataclass(frozen=True, slots=True)
class Beginning:
    """Where a run begins: in a machine with its inputs."""

    signature: rlm.Signature
    inputs: Mapping[str, JsonValue | Path]
    """The value of every input; a path for one from a file."""

    def open_texts(self, stack: ExitStack) -> Beginning:
        """The same, with every file in UTF-8. Raises `InputError` if one is not a text."""
        inputs = {
            name: open_text(name, value, stack) if isinstance(value, Path) else value
            for name, value in self.inputs.items()
        }
        return replace(self, inputs=inputs)

    mark: str | None = None
    """The mark of the run on record that begins again; None draws one."""


@dataclass(frozen=True, slots=True)
class BeginningAt:
    """Where a run begins: at a checkpoint, of itself or of the run that it replays."""

    checkpoint: events.CheckpointMade
    task: rlm.Task


class Driver:
    """Performs a run, from getting a machine to its clean-up.

    Args:
        run: The run.
        resumed: The event of its being resumed, if it is.
        last: The checkpoint that it resumes from, if any.
        replayed: The event of its being a replay, if it is one.
    """

    def __init__(
        self,
        run: RunContext,
        *,
        resumed: events.RunResumed | None = None,
        last: events.CheckpointMade | None = None,
        replayed: events.RunReplayed | None = None,
    ) -> None:
        self._run = run
        self._resumed = resumed
        self._last = last
        self._replayed = replayed
        self._limits = limits(run.request, run.settings)
        self._started = time.monotonic()
        past = run.replies.past if resumed else None
        self._budget = Budget(
            self._limits,
            now=self._started,
            usage=past and past.usage,
            used=last and last.used,
            ahead=past and past.ahead(last and last.step),
        )
        self._bench = Workbench(run.fleet, run.settings, run=run.run_id, on_event=run.publish)
        self._checkpoints = Checkpoints(run, self._bench, self._budget, last)
        self._warnings = list(run.request.notes)
        self._has_begun = False

    async def perform(
        self, beginning: Beginning | BeginningAt, replies: Sequence[rlm.Reply] = ()
    ) -> RunResult:
        """Perform the whole run, clean-up included.

        Args:
            beginning: Where it begins.
            replies: What its engine was told before, if it is resumed.
        """
        run = self._run
        try:
            try:
                task, notes = await self._set_up(beginning)
                conversation = Conversation(
                    run,
                    self._bench,
                    self._budget,
                    task,
                    checkpoints=self._checkpoints,
                    children=self._last.children if self._last else 0,
                    notes=notes,
                )
                outcome = await conversation.drive(replies)
                handed = await self._hand_over(task, outcome)
                machine, kept = await self._keep()
            finally:
                await self._clean_up()
        except BaseException as error:
            # One that could not even be resumed has ended before, and that end stays.
            if self._has_begun or not self._resumed:
                run.publish(self._describe_failure(error))
            raise
        if self._checkpoints.problem:
            self._warnings.append(self._checkpoints.problem)
        result = RunResult(
            run_id=run.run_id,
            status=outcome.status,
            outputs=name_files(task.signature, outcome.outputs, handed.files),
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
            verified=run.request.verify if outcome.verified else None,
            warnings=(*self._warnings, *handed.warnings),
            files=handed.files,
        )
        run.publish(result.event())
        await self._prune()
        problems = (run.journal.problem,) if run.journal.problem else ()
        return replace(result, warnings=(*result.warnings, *problems))

    async def _set_up(self, beginning: Beginning | BeginningAt) -> tuple[rlm.Task, tuple[str, ...]]:
        """Prepare machine, kernel and inputs within the run's time.

        Returns:
            The task, and sentences for the model on what the machine lacks.
        """
        with anyio.move_on_after(self._limits.seconds):
            if isinstance(beginning, Beginning):
                task, notes = await self._begin(beginning), ()
            else:
                task, notes = beginning.task, await self._begin_at(beginning.checkpoint)
            self._announce(task, beginning)
            return task, notes
        raise MachineError(
            f"Getting the machine and the inputs ready took longer than the run's limit of "
            f"{self._limits.seconds:g} s. Allow the run more seconds, or give it less to carry."
        )

    async def _begin(self, beginning: Beginning) -> rlm.Task:
        """Prepare the requested machine, its kernel and the inputs."""
        run, request = self._run, self._run.request
        if request.machine_id:
            await self._bench.switch(request.machine_id)
        else:
            self._budget.reserve_machines(1, self._started)
            await self._bench.create(request.spec)
        machine = await self._bench.machine()
        kernel = await self._bench.move_in(machine.id)
        variables, files = await bring_in(machine, kernel, beginning.inputs, request.files)
        facts = _facts(machine, (await machine.info()).spec, run.settings)
        return rlm.Task(
            beginning.signature,
            inputs=variables,
            files=files,
            machine=facts,
            instructions=request.instructions or "",
            max_iterations=request.max_iterations,
            max_sub_calls=request.max_llm_calls,
            verify=request.verify,
            functions=repl_functions(),
            mark=secrets.token_hex(MARK_BYTES) if beginning.mark is None else beginning.mark,
            repeats_told=run.settings.repeats_told,
            repeats_ended=run.settings.repeats_ended,
        )

    async def _begin_at(self, checkpoint: events.CheckpointMade) -> tuple[str, ...]:
        """Restore the machines of a checkpoint. Returns sentences on what they lack."""
        self._budget.reserve_machines(1 + bool(checkpoint.current_commit_id), self._started)
        try:
            return await restore(self._bench, checkpoint)
        except UnknownHandle as error:
            raise UsageError(
                f"The checkpoint at step {checkpoint.step} has been deleted: {error}"
            ) from error

    def _announce(self, task: rlm.Task, beginning: Beginning | BeginningAt) -> None:
        """Publish that the run begins, resumes or is a replay."""
        self._has_begun = True
        if self._resumed:
            self._run.publish(self._resumed)
        if isinstance(beginning, Beginning):
            inputs = recordable(beginning.inputs) if not self._run.request.files else None
            self._publish_start(task, inputs)
        elif not self._resumed:
            self._publish_start(task, None)
        if self._replayed:
            self._run.publish(self._replayed)

    def _publish_start(self, task: rlm.Task, inputs: Mapping[str, JsonValue] | None) -> None:
        run = self._run
        assert self._bench.home_id
        run.publish(
            events.RunStarted(
                run_id=run.run_id,
                signature=str(task.signature),
                machine_id=self._bench.home_id,
                model=run.replies.model.name,
                sub_model=run.replies.sub_model.name,
                max_steps=task.max_iterations,
                task=task.to_json(),
                options=run.request.options(),
                inputs=inputs,
            )
        )

    async def _hand_over(self, task: rlm.Task, outcome: rlm.Outcome) -> HandedOver:
        """Copy the run's files out of the machine that is current at its end."""
        try:
            machine = await self._bench.machine()
        except (MachineError, UsageError) as error:
            return HandedOver(warnings=(f"Files could not be handed over: {error}",))
        return await hand_over(
            machine,
            self._run.journal.files,
            paths=task.signature.file_paths(outcome.outputs),
            patterns=self._run.request.output_files,
        )

    async def _keep(self) -> tuple[Machine, bool]:
        """The current machine at the end of the run, and whether it stays."""
        machine = await self._bench.machine()
        request = self._run.request
        if machine.id == request.machine_id or not request.keep_machine:
            return machine, machine.id == request.machine_id
        # Whatever happens now, the result of the run must not be lost with its machine.
        try:
            await self._run.fleet.keep(machine.id)
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
        with anyio.move_on_after(DISCONNECT_SECONDS, shield=True):
            await self._bench.aclose()
        try:
            # This is shielded and bounded by itself.
            self._warnings += await self._run.fleet.release_run(self._run.run_id)
        except MachineError as error:  # the ledger's; the outcome must not be lost for it
            self._warnings.append(f"The run's machines are left for a later sweep: {error}")

    async def _prune(self) -> None:
        """Delete what older runs left. Trouble with them must not cost this one its result."""
        settings, fleet = self._run.settings, self._run.fleet
        journals = Journals(settings.state_dir, fleet.principal)
        try:
            await prune_checkpoints(fleet, journals)
            await prune_to_size(fleet, journals, settings.max_record_mib * MIB)
        except (MachineError, OSError) as error:
            logger.warning("What older runs left is deleted another time: %s", error)

    def _seconds(self) -> float:
        return time.monotonic() - self._started

    def _describe_failure(self, error: BaseException) -> events.RunFinished:
        cancelled = isinstance(error, anyio.get_cancelled_exc_class())
        return events.RunFinished(
            run_id=self._run.run_id,
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
    return rlm.MachineFacts(
        isolation=can.isolation,
        fidelity=can.fidelity,
        root=can.root,
        network=can.network,
        limits=limits,
        notes=can.notes,
    )
