"""The engine: a conversation with a model that writes cells until it hands in its outputs.

It requests everything it needs (`protocol`) and does no I/O itself, so the same replies always
produce the same requests, events and outcome. Tests, replay and resume all feed it replies.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeVar

from vers_rlm_mcp.values import CellResult, Completion, Final

from . import feedback
from .events import Feedback, StepFinished
from .extraction import read_call, read_outputs
from .prompt import extraction_prompt, opening, second_extraction_prompt
from .protocol import (
    CallModel,
    CheckFiles,
    Emit,
    ModelFailure,
    Outcome,
    RunCell,
    Step,
    Stop,
    Verdict,
    Verify,
)
from .replies import parse_reply
from .signature import Checked
from .transcript import Transcript

if TYPE_CHECKING:
    from collections.abc import Generator

    from pydantic import JsonValue

    from .events import Event
    from .protocol import Purpose, Reply, Request, Run
    from .replies import ParsedReply
    from .signature import Signature
    from .task import Task

MAX_SILENT = 3
"""Replies without code in a row after which more of the same will not help."""

T = TypeVar("T")


def run(task: Task) -> Run:
    """Run a task: a generator that yields requests, is sent replies, and returns the outcome.

    An outcome is returned whatever the model does. Raises `TypeError` only when it is sent a reply
    that does not belong to its request.
    """
    return _Engine(task).run()


class _Ended(Exception):
    """Ends the run with what there is. The text is the reason."""

    def __init__(self, reason: str, output: str = "") -> None:
        super().__init__(reason)
        self.output = output
        """The output of the cell that was stopped."""


@dataclass(frozen=True, slots=True)
class _Turn:
    """A step, the message to the model that follows it, and the outputs if they were accepted."""

    step: Step
    message: str
    outputs: dict[str, JsonValue] | None = None

    @property
    def failure(self) -> str:
        """Identifies what failed, without white space and numbers; empty if nothing did."""
        error = re.sub(r"[0-9]+", "", (self.step.error or "").rstrip().rpartition("\n")[2])
        return " ".join(f"{self.step.code}\n{error}".split()) if error else ""


class _Engine:
    def __init__(self, task: Task) -> None:
        self._task = task
        self._transcript = Transcript(opening(task))
        self._steps: list[Step] = []
        self._right: dict[str, JsonValue] = {}
        """The outputs of the latest answer that fit the signature."""

    def run(self) -> Run:
        try:
            return (yield from self._loop())
        except _Ended as end:
            return self._outcome("partial", self._right, str(end))

    def _loop(self) -> Run:
        silent, repeats, failure = 0, 0, ""
        while True:
            turn = yield from self._step(len(self._steps) + 1)
            if turn.outputs is not None:
                return self._outcome("finished", turn.outputs, "The model called FINAL.")
            silent = 0 if turn.step.code else silent + 1
            repeats = repeats + 1 if turn.failure and turn.failure == failure else 1
            failure, message = turn.failure, turn.message
            if why := self._exhausted(silent, repeats):
                return (yield from self._extract(message, why))
            if repeats == self._task.repeats_told:
                message += "\n" + feedback.repeated(self._task, repeats)
            self._transcript.add_message(message)

    def _exhausted(self, silent: int, repeats: int) -> str | None:
        steps = len(self._steps)
        if steps == self._task.max_iterations:
            return f"All {steps} steps are used."
        if repeats == self._task.repeats_ended:
            return f"The same cell failed in the same way {repeats} times in a row."
        return f"{silent} replies in a row held no code." if silent == MAX_SILENT else None

    def _step(self, number: int) -> Generator[Request, Reply, _Turn]:
        reply = yield from self._ask_model(number, "step")
        parsed = parse_reply(reply.text)
        if reply.was_run not in (None, parsed.code):  # read by another version
            parsed = replace(parsed, code=reply.was_run or "", notes=())
        problem = None if reply.was_run else feedback.not_run(self._task, reply, parsed)
        if problem:
            # Journals of tasks without a mark count empty replies as steps, too.
            is_old = reply.was_run is not None and not self._task.mark
            is_step = bool(reply.text.strip() or reply.thoughts) or is_old
            turn = self._silent_turn(number, parsed, problem, is_step=is_step)
            yield from self._emit(Feedback(number, problem))
            if not is_step:
                return turn
        else:
            cell = yield from self._run_cell(number, parsed)
            turn = yield from self._cell_turn(number, parsed, cell)
        self._steps.append(turn.step)
        yield from self._emit(self._step_finished(turn, reply))
        return turn

    def _silent_turn(
        self, number: int, parsed: ParsedReply, problem: str, *, is_step: bool
    ) -> _Turn:
        message = feedback.reminder(self._task, problem, number if is_step else number - 1)
        return _Turn(
            Step(
                number=number,
                reasoning=parsed.reasoning,
                code="",
                output="",
                error=problem,
                seconds=0.0,
            ),
            message,
        )

    def _cell_turn(
        self, number: int, parsed: ParsedReply, cell: CellResult
    ) -> Generator[Request, Reply, _Turn]:
        notes = list(parsed.notes)
        error, outputs = cell.error, None
        if cell.status == "final":
            checked = _accept(self._task.signature, cell.final or Final())
            self._right = checked.values
            error = yield from self._objection(number, checked)
            if error:
                notes.append(error)
                yield from self._emit(Feedback(number, error))
            else:
                outputs = checked.values
        step = Step(
            number=number,
            reasoning=parsed.reasoning,
            code=parsed.code,
            output=cell.output,
            error=error,
            seconds=cell.seconds,
        )
        message = feedback.cell_message(self._task, cell, notes, number)
        return _Turn(step, message, outputs)

    def _objection(self, number: int, checked: Checked) -> Generator[Request, Reply, str | None]:
        """The reason for refusing an answer; None if it is accepted."""
        if checked.faults:
            return feedback.refusal(self._task, checked.faults)
        if paths := self._task.signature.file_paths(checked.values):
            there = _expect((yield CheckFiles(number, paths)), Verdict)
            if not there.accepted:
                return feedback.refusal(self._task, (there.output,))
        if self._task.verify is None:
            return None
        asked = Verify(number, self._task.verify, checked.values)
        verdict = _expect((yield asked), Verdict)
        return None if verdict.accepted else feedback.rejection(self._task, verdict)

    def _extract(self, message: str, why: str) -> Run:
        """Ask for the outputs once more, as JSON, from what the conversation holds."""
        signature = self._task.signature
        self._transcript.add_message(f"{message}\n\n{extraction_prompt(signature, why)}")
        for tries_left in (1, 0):
            reply = yield from self._ask_model(len(self._steps), "extraction")
            checked = read_outputs(reply.text, signature)
            self._right = checked.values or self._right
            if not checked.faults:
                break
            faults = "; ".join(checked.faults)
            if not tries_left:
                raise _Ended(f"{why} The outputs could not be extracted: {faults}.")
            self._transcript.add_message(second_extraction_prompt(signature, faults))
        if objection := (yield from self._objection(len(self._steps), checked)):
            raise _Ended(f"{why} {objection}")
        reason = f"{why} The outputs were extracted from the conversation."
        return self._outcome("extracted", checked.values, reason)

    def _ask_model(self, number: int, purpose: Purpose) -> Generator[Request, Reply, Completion]:
        reply = yield CallModel(number, self._transcript.messages, purpose)
        if isinstance(reply, ModelFailure):
            raise _Ended(f"The model did not answer: {reply.reason}")
        answer = _expect(reply, Completion)
        self._transcript.reply(answer.text)
        return answer

    def _run_cell(self, number: int, parsed: ParsedReply) -> Generator[Request, Reply, CellResult]:
        try:
            asked = RunCell(number, parsed.code, self._transcript.messages)
            return _expect((yield asked), CellResult)
        except _Ended as end:
            step = Step(
                number=number,
                reasoning=parsed.reasoning,
                code=parsed.code,
                output=end.output,
                error=str(end),
                seconds=0.0,
            )
            self._steps.append(step)
            raise

    def _emit(self, event: Event) -> Generator[Request, Reply, None]:
        _expect((yield Emit(event)), type(None))

    def _step_finished(self, turn: _Turn, reply: Completion) -> StepFinished:
        step = turn.step
        return StepFinished(
            step=step.number,
            max_steps=self._task.max_iterations,
            reasoning=step.reasoning,
            code=step.code,
            output=step.output,
            error=step.error,
            seconds=step.seconds,
            usage=reply.usage,
            done=turn.outputs is not None,
        )

    def _outcome(
        self,
        status: Literal["finished", "extracted", "partial"],
        outputs: dict[str, JsonValue],
        reason: str,
    ) -> Outcome:
        reasoning = self._steps[-1].reasoning if self._steps else ""
        verified = self._task.verify is not None and status != "partial"
        return Outcome(
            status=status,
            outputs=outputs,
            steps=tuple(self._steps),
            reason=reason,
            final_reasoning=reasoning,
            verified=verified,
        )


def _expect(reply: Reply, kind: type[T]) -> T:
    if isinstance(reply, Stop):
        raise _Ended(reply.reason, reply.output)
    if not isinstance(reply, kind):
        raise TypeError(f"expected {kind.__name__} or Stop as the reply, got {reply!r}")
    return reply


def _accept(signature: Signature, call: Final) -> Checked:
    """Read a call of FINAL in each way it may be meant: the first that fits, or the first."""
    readings = [
        signature.check_outputs(each) for each in read_call(call.args, call.kwargs, signature)
    ]
    if not readings:
        return Checked({}, (f"it takes at most {len(signature.outputs)} values, each once",))
    return next((checked for checked in readings if not checked.faults), readings[0])
