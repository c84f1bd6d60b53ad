"""One conversation of a run: performs what its engine asks, on its own machine."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager, nullcontext
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
    ModelFailed,
    ModelUnavailable,
)
from vers_rlm_mcp.machines import find_files, run_command
from vers_rlm_mcp.values import CellResult, Completion, Usage

from . import events
from .exchange import Exchange
from .notes import lost_variables
from .repl_handlers import CellCalls
from .reply_source import Answer, is_empty, problem_with

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from vers_rlm_mcp.machines import CommandResult

    from .budget import Budget
    from .checkpoints import Checkpoints
    from .context import RunContext
    from .workbench import Workbench

OUTPUT_PIECES = 5_000
"""Pieces of a cell's output that are published as they come. A kernel sends some 200 a second at
most; a guest that makes them smaller must not fill the journal."""

CHECK_OUTPUT = 64 * 1024
"""Bytes of a check's output that are kept; the model is shown less."""


LAST_CHECKPOINT_SECONDS = 30.0
"""How long the checkpoint at the end of a run may take."""

SHOWN = 300
"""Characters of either side of a difference that are shown."""


class Conversation:
    """An engine at work, until it has an outcome.

    Args:
        run: The run that it belongs to.
        bench: Where it works. Its home kernel is this conversation's alone.
        budget: What it may use.
        task: What it is about.
        path: Its place in the run's tree; empty for the run's own conversation.
        checkpoints: The run's checkpoints, if this is its own conversation.
        checks: How many machines are set aside for checks, of it and its siblings.
        children: How many conversations it started before it was resumed.
        notes: Sentences for the model, sent with the result of the first cell.
        origin: The fingerprint of the exchange that it is a branch of.
    """

    def __init__(
        self,
        run: RunContext,
        bench: Workbench,
        budget: Budget,
        task: rlm.Task,
        *,
        path: str = "",
        checkpoints: Checkpoints | None = None,
        checks: anyio.Semaphore | None = None,
        children: int = 0,
        notes: Sequence[str] = (),
        origin: str = "",
    ) -> None:
        self.run = run
        self.bench = bench
        self.budget = budget
        self.task = task
        self.path = path
        self.cell = rlm.RunCell(0, "")
        """The cell under way, or the last one."""
        self.children = children
        self._checkpoints = checkpoints
        self._checks = checks or anyio.Semaphore(1)
        self._calls = CellCalls(bench, self)
        self._calls.note(notes)
        self._cells = 0
        """How many cells have run."""
        self._iteration = 0
        """The step that was reserved last."""
        self._sub_calls = 0
        self._exchanges = [Exchange.of_task(task, origin)]
        if path:
            about = task.branch.plan if task.branch else task.instructions
            self._exchanges.append(Exchange.of_child(path, about))
        self._asked = ""
        """The fingerprint of the exchange when the model was asked last."""
        self._output: list[str] = []
        """The output of the cell under way, in pieces; the kernel's limit bounds it."""

    async def drive(self, replies: Sequence[rlm.Reply] = ()) -> rlm.Outcome:
        """Answer the engine until it has the outcome, first with the `replies` of a resumed run.

        Raises:
            ModelUnavailable: The run's first call showed that the model cannot be used.
        """
        engine = rlm.run(self.task)
        self._cells = sum(isinstance(reply, CellResult) for reply in replies)
        try:
            asked = feed(engine, replies)
            for reply in replies:
                self._remember(reply)
            while True:
                reply = await self._answer(asked)
                self._remember(reply)
                asked = engine.send(reply)
        except StopIteration as stop:
            outcome: rlm.Outcome = stop.value
        if self._checkpoints and outcome.status != "partial":
            with anyio.move_on_after(LAST_CHECKPOINT_SECONDS):
                await self._checkpoints.commit_after_step(len(outcome.steps), 0, "", self.children)
        return outcome

    async def _answer(self, asked: rlm.Request) -> rlm.Reply:
        """Answer one request. Running out of time or budget stops the conversation."""
        if isinstance(asked, rlm.Emit):
            return self.publish(asked.event)
        with anyio.move_on_at(self._deadline()):
            try:
                match asked:
                    case rlm.CallModel():
                        return await self._call_model(asked)
                    case rlm.RunCell():
                        return await self._run_cell(asked)
                    case rlm.Verify():
                        return await self._verify(asked)
                    case rlm.CheckFiles():
                        return await self._check_files(asked)
            except (BudgetExceeded, KernelError, MachineError) as error:
                return rlm.Stop(str(error), "".join(self._output))
        reason = f"The time limit of {self.budget.time_limit:g} s was reached."
        return rlm.Stop(reason, "".join(self._output))

    async def _call_model(self, asked: rlm.CallModel) -> rlm.Reply:
        if asked.purpose == "step" and asked.step != self._iteration:
            self.budget.reserve_iteration(time.monotonic())
            self._iteration = asked.step  # an empty reply is asked for again, at no cost of a step
        else:
            self.budget.check(time.monotonic())
        self.publish(events.ModelAsked(asked.step, asked.purpose, len(asked.messages)))
        started = time.monotonic()
        answer = await self._ask(asked)
        if isinstance(answer, ModelError):
            # At the run's first step nothing is lost, and the user has to change something.
            if asked.step == 1 and not self.path and isinstance(answer, ModelUnavailable):
                raise answer
            return rlm.ModelFailure(str(answer))
        reply = answer.completion
        self.budget.settle(reply.usage, recorded=answer.recorded)
        self.publish(
            events.ModelReplied(
                step=asked.step,
                purpose=asked.purpose,
                text=reply.text,
                usage=reply.usage,
                seconds=time.monotonic() - started,
                stop_reason=reply.stop_reason,
                thoughts=reply.thoughts,
                request=answer.request,
                recorded=answer.recorded,
                exchange=answer.exchange,
            )
        )
        return reply

    async def _ask(self, asked: rlm.CallModel) -> Answer | ModelError:
        """Ask the model; while it thinks, the checkpoint of the step before is made."""
        answer: Answer | ModelError | None = None
        self._asked = self._exchanges[0].fingerprint()
        async with anyio.create_task_group() as tasks:
            if self._checkpoints:
                # The last step that has ended; an extraction has that step's number.
                done = asked.step - 1 if asked.purpose == "step" else asked.step
                tasks.start_soon(
                    self._checkpoints.commit_after_step,
                    *(done, len(asked.messages), self._asked, self.children),
                )
            try:
                answer = await self.run.replies.ask_model(
                    asked, self.path, self._exchanges, self._reply_limit()
                )
            except ModelError as error:
                answer = error
        assert answer  # set, unless the task group was cancelled and raised
        return answer

    async def _run_cell(self, asked: rlm.RunCell) -> CellResult:
        if self._checkpoints:
            await self._checkpoints.commit_before_cell(asked, self._asked, self.children)
        self.publish(events.CellStarted(asked.step, asked.code))
        self.cell = asked
        try:
            result = await self._in_kernel(asked)
        except (KernelError, MachineError) as error:
            notes = await self._recover(asked.step, str(error))
            if notes is None:
                raise  # `_answer` stops the run, and takes `_output` along
            reply = CellResult("died", "".join(self._output), error=str(error), notes=notes)
        else:
            lost = result.status == "died" or result.lost
            notes = await self._recover(asked.step, result.error or "") if lost else None
            reply = replace(result, notes=tuple(lost_variables(result)) if notes is None else notes)
        self._output.clear()
        reply = self._prefer_recorded(asked, reply)
        self.publish(
            events.CellFinished(
                step=asked.step,
                status=reply.status,
                output=reply.output,
                error=reply.error,
                final=reply.final,
                seconds=reply.seconds,
                notes=reply.notes,
            )
        )
        return reply

    async def _in_kernel(self, asked: rlm.RunCell) -> CellResult:
        kernel = self.bench.home
        assert kernel

        def publish(text: str) -> None:
            self._output.append(text)
            if len(self._output) <= OUTPUT_PIECES:
                self.publish(events.CellOutput(asked.step, text))

        self._cells += 1
        return await kernel.run(
            asked.code,
            timeout=self.run.settings.cell_timeout,
            handler=self._calls,
            on_output=publish,
            cells=self._cells - 1,
        )

    async def _recover(self, step: int, why: str) -> tuple[str, ...] | None:
        return await self._checkpoints.recover(step, why) if self._checkpoints else None

    def _prefer_recorded(self, asked: rlm.RunCell, reply: CellResult) -> CellResult:
        """The recorded reply if this one does not differ, so that later requests stay the same.

        Time and budget may differ; they do not count.
        """
        known = self.run.replies.past.cell(self.path, asked.step, asked.code)
        difference = known and _difference(known, reply)
        notes = [*self._calls.take_notes(), *self._checkpoint_notes()]
        if known and not difference:
            # Notes that are not on record go to the model with the first new cell.
            self._calls.note([note for note in notes if note not in known.notes])
            return known
        if difference:
            self.publish(events.Diverged(asked.step, difference))
        return replace(reply, notes=(*reply.notes, *notes, *self._budget_warning()))

    def _checkpoint_notes(self) -> Sequence[str]:
        return self._checkpoints.take_notes() if self._checkpoints else ()

    async def _verify(self, asked: rlm.Verify) -> rlm.Verdict:
        """Run the check in a temporary copy of the current machine."""
        started = time.monotonic()
        async with self._checks, self.bench.copy() as machine:
            result = await run_command(
                machine,
                asked.command,
                timeout=self.run.settings.cell_timeout,
                stdin=json.dumps(asked.outputs, ensure_ascii=False).encode(),
                limit=CHECK_OUTPUT,
            )
        accepted = result.status is not None and result.status.ok
        verdict = rlm.Verdict(accepted, _describe_check(result))
        known = self.run.replies.past.verdict(self.path, asked.step)
        if known and known.accepted == accepted:
            verdict = known  # what it printed may tell the time
        elif known:
            self.publish(events.Diverged(asked.step, f"the check said: {verdict.output}"))
        seconds = time.monotonic() - started
        self.publish(
            events.Verified(
                step=asked.step,
                command=asked.command,
                accepted=accepted,
                output=verdict.output,
                seconds=seconds,
            )
        )
        return verdict

    async def _check_files(self, asked: rlm.CheckFiles) -> rlm.Verdict:
        machine = await self.bench.machine()
        found = await find_files(machine, paths=asked.paths, most=len(asked.paths))
        faults = "; ".join(f"{each.path}: {each.fault}" for each in found.files if each.fault)
        verdict = rlm.Verdict(not faults, faults)
        self.publish(events.FilesChecked(asked.step, verdict.accepted, verdict.output))
        return verdict

    def _budget_warning(self) -> tuple[str, ...]:
        low = self.budget.low(time.monotonic())
        return (low,) if low else ()

    def _reply_limit(self, setting: int | None = None) -> int:
        """The tokens that a reply may have: as set, within what the budget leaves."""
        limit = setting or self.run.settings.max_reply_tokens
        left = self.budget.tokens_left(time.monotonic())
        return limit if left is None else max(1, min(limit, left))

    def _deadline(self) -> float:
        """The end of the conversation's time, on the event loop's clock."""
        left = self.budget.seconds_left(time.monotonic())
        return anyio.current_time() + (inf if left is None else left)

    def _remember(self, reply: rlm.Reply) -> None:
        for exchange in self._exchanges:
            exchange.add(reply)

    def publish(self, event: rlm.Event) -> None:
        """Publish an event of this conversation."""
        self.run.publish(event, self.path)

    # For its cells, through `CellCalls`.

    async def ask_sub_model(self, prompt: str) -> str:
        """Ask the sub-model for a cell, which has reserved the call.

        An empty reply is asked for once more. A call without any reply is released in the budget.
        Waiting is no part of the cell's time, so that no answer is paid for and thrown away.

        Raises:
            ModelError: There is no reply, or it is no answer.
        """
        home = self.bench.home  # whose cell calls
        with home.untimed() if home else nullcontext():
            async with self.run.sub_calls:
                reply = await self._sub_call_again_if_empty(prompt)
        if problem := problem_with(reply):
            raise ModelFailed(problem)
        return reply.text

    async def _sub_call_again_if_empty(self, prompt: str) -> Completion:
        try:
            reply = await self._sub_call(prompt)
            return await self._sub_call(prompt) if is_empty(reply) else reply
        except ModelError:
            self.budget.release_sub_calls(1)
            raise

    async def _sub_call(self, prompt: str) -> Completion:
        # Checked again: what is under way may have used up the tokens or the money.
        self.budget.check(time.monotonic())
        self._sub_calls += 1
        number, started = self._sub_calls, time.monotonic()
        self.publish(events.SubCallStarted(self.cell.step, number, prompt))
        limit = self._reply_limit(self.run.settings.max_sub_reply_tokens)
        try:
            answer = await self.run.replies.ask_sub_model(prompt, limit)
        except ModelError as error:
            nothing = Answer(Completion("", Usage()), "", recorded=False)
            self._sub_call_finished(number, started, nothing, str(error))
            raise
        self.budget.settle(answer.completion.usage, recorded=answer.recorded)
        self._sub_call_finished(number, started, answer, problem_with(answer.completion))
        return answer.completion

    def _sub_call_finished(
        self, number: int, started: float, answer: Answer, error: str | None = None
    ) -> None:
        self.publish(
            events.SubCallFinished(
                step=self.cell.step,
                number=number,
                text=answer.completion.text,
                usage=answer.completion.usage,
                seconds=time.monotonic() - started,
                error=error,
                stop_reason=answer.completion.stop_reason,
                thoughts=answer.completion.thoughts,
                request=answer.request,
                recorded=answer.recorded,
            )
        )

    @contextmanager
    def reserved(self, machines: int) -> Generator[None]:
        """Reserve machines in the budget; release them if they could not be made."""
        self.budget.reserve_machines(machines, time.monotonic())
        try:
            yield
        except BaseException:
            self.budget.release_machines(machines)
            raise

    def child(
        self,
        path: str,
        bench: Workbench,
        budget: Budget,
        task: rlm.Task,
        checks: anyio.Semaphore | None,
    ) -> Conversation:
        """A conversation that a cell of this one starts on a copy of the machine."""
        origin = self._exchanges[0].fingerprint()
        return Conversation(self.run, bench, budget, task, path=path, checks=checks, origin=origin)


def feed(engine: rlm.Run, replies: Sequence[rlm.Reply]) -> rlm.Request:
    """Feed recorded replies to a new engine, and return its next request.

    Raises `StopIteration` if the run ends with them, and `TypeError` if they do not fit.
    """
    asked = next(engine)
    for reply in replies:
        while isinstance(asked, rlm.Emit):
            asked = engine.send(None)
        asked = engine.send(reply)
    # Events after the last recorded reply are in the journal already; those of a new run are not.
    while replies and isinstance(asked, rlm.Emit):
        asked = engine.send(None)
    return asked


def _difference(known: CellResult, reply: CellResult) -> str | None:
    """The first difference that the model can see, except in time and budget."""
    for part in ("status", "error", "output", "final"):
        before, now = getattr(known, part), getattr(reply, part)
        if before != now:
            return f"its {part} was {before!r:.{SHOWN}}, and is {now!r:.{SHOWN}}"
    return None


def _describe_check(result: CommandResult) -> str:
    """The output of a check, and how it ended."""
    parts = [result.stdout.text.rstrip("\n"), result.stderr.text.rstrip("\n")]
    if result.status is None:
        parts.append(f"[it was killed after {result.seconds:.0f} s]")
    elif result.status.signal is not None:
        parts.append(f"[killed by signal {result.status.signal}]")
    else:
        parts.append(f"[exit code: {result.status.code}]")
    return "\n".join(part for part in parts if part)
