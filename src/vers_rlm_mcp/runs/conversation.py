"""One conversation of a run: performs what its engine asks, on a machine of its own."""

from __future__ import annotations

import json
import time
from math import inf
from typing import TYPE_CHECKING, Protocol

import anyio

from vers_rlm_mcp import rlm
from vers_rlm_mcp.errors import (
    BudgetExceeded,
    KernelError,
    MachineError,
    ModelError,
    ModelUnavailable,
)
from vers_rlm_mcp.machines import run_command

from .calls import lost_variables

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vers_rlm_mcp.kernel import HostCall, Json
    from vers_rlm_mcp.machines import CommandResult

    from .tree import Tree
    from .workbench import Workbench

OUTPUT_PIECES = 5_000
"""Pieces of a cell's output that are published as they come. A kernel sends some 200 a second at
most; a guest that makes them smaller must not fill the journal."""

CHECK_OUTPUT = 64 * 1024
"""Bytes of a check's output that are kept; the model is shown less."""


class CellCalls(Protocol):
    """Answers the calls that cells make."""

    async def __call__(self, call: HostCall) -> Json:
        """Answer one call; see `kernel.Handler`."""
        ...

    def begin(self, asked: rlm.RunCell) -> None:
        """A cell starts."""
        ...

    def take_notes(self) -> Sequence[str]:
        """What the model should know of the calls since the last time, in whole sentences."""
        ...


class Conversation:
    """An engine at work, until it has an outcome.

    Args:
        tree: The run.
        bench: Where it works. Its home kernel is this conversation's alone.
        budget: What it may use.
        calls: Answers its cells.
        path: Its place in the run's tree; empty for the run's own conversation.
    """

    def __init__(
        self, tree: Tree, bench: Workbench, budget: rlm.Budget, calls: CellCalls, path: str = ""
    ) -> None:
        self._tree = tree
        self._bench = bench
        self._budget = budget
        self._calls = calls
        self._path = path
        self._publish = tree.publisher(path)
        self._output: list[str] = []
        """What the cell under way has printed, in pieces; the kernel's limit bounds it."""

    async def drive(self, task: rlm.Task) -> rlm.Outcome:
        """Answer the engine until it has the outcome.

        Raises:
            ModelUnavailable: The run's first call showed that the model cannot be used.
        """
        engine = rlm.run(task)
        reply: rlm.Reply = None
        while True:
            try:
                asked = engine.send(reply)
            except StopIteration as stop:
                return stop.value
            reply = await self._answer(asked)

    async def _answer(self, asked: rlm.Request) -> rlm.Reply:
        """Perform one request; running out of time or budget stops the conversation."""
        if isinstance(asked, rlm.Emit):
            return self._publish(asked.event)
        with anyio.move_on_at(self._deadline()):
            try:
                return await self._perform(asked)
            except (BudgetExceeded, KernelError, MachineError) as error:
                return rlm.Stop(str(error), "".join(self._output))
        reason = f"The time limit of {self._budget.time_limit:g} s was reached."
        return rlm.Stop(reason, "".join(self._output))

    async def _perform(self, asked: rlm.CallModel | rlm.RunCell | rlm.Verify) -> rlm.Reply:
        if isinstance(asked, rlm.CallModel):
            return await self._call_model(asked)
        if isinstance(asked, rlm.RunCell):
            return await self._run_cell(asked)
        return await self._verify(asked)

    async def _call_model(self, asked: rlm.CallModel) -> rlm.Reply:
        if asked.purpose == "step":
            self._budget.reserve_iteration(time.monotonic())
        else:
            self._budget.check(time.monotonic())
        self._publish(rlm.ModelAsked(asked.step, asked.purpose, len(asked.messages)))
        started = time.monotonic()
        try:
            reply = await self._tree.model.complete(asked.messages)
        except ModelError as error:
            # At the run's first step nothing is lost, and the user has to change something.
            if asked.step == 1 and not self._path and isinstance(error, ModelUnavailable):
                raise
            return rlm.ModelFailure(str(error))
        self._budget.settle(reply.usage)
        seconds = time.monotonic() - started
        self._publish(rlm.ModelReplied(asked.step, asked.purpose, reply.text, reply.usage, seconds))
        return rlm.ModelReply(reply.text, reply.usage, reply.stop_reason)

    async def _run_cell(self, asked: rlm.RunCell) -> rlm.CellReply:
        self._publish(rlm.CellStarted(asked.step, asked.code))
        self._calls.begin(asked)
        kernel = self._bench.home
        assert kernel

        def publish(text: str) -> None:
            self._output.append(text)
            if len(self._output) <= OUTPUT_PIECES:
                self._publish(rlm.CellOutput(asked.step, text))

        result = await kernel.run(
            asked.code,
            timeout=self._tree.settings.cell_timeout,
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

    async def _verify(self, asked: rlm.Verify) -> rlm.Verdict:
        """Run the check in a copy of the current machine, which is deleted then."""
        started = time.monotonic()
        async with self._bench.copy() as machine:
            result = await run_command(
                machine,
                asked.command,
                timeout=self._tree.settings.cell_timeout,
                stdin=json.dumps(asked.outputs, ensure_ascii=False).encode(),
                limit=CHECK_OUTPUT,
            )
        accepted = result.status is not None and result.status.ok
        verdict = rlm.Verdict(accepted, _described(result))
        seconds = time.monotonic() - started
        self._publish(rlm.Verified(asked.step, asked.command, accepted, verdict.output, seconds))
        return verdict

    def _running_low(self) -> tuple[str, ...]:
        low = self._budget.low(time.monotonic())
        return (low,) if low else ()

    def _deadline(self) -> float:
        """The end of the conversation's time, on the event loop's clock."""
        left = self._budget.seconds_left(time.monotonic())
        return anyio.current_time() + (inf if left is None else left)


def _described(result: CommandResult) -> str:
    """What a check printed and how it ended."""
    parts = [result.stdout.text.rstrip("\n"), result.stderr.text.rstrip("\n")]
    if result.status is None:
        parts.append(f"[it was killed after {result.seconds:.0f} s]")
    elif result.status.signal is not None:
        parts.append(f"[killed by signal {result.status.signal}]")
    else:
        parts.append(f"[exit code: {result.status.code}]")
    return "\n".join(part for part in parts if part)
