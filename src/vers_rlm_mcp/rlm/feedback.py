"""Messages to the model after each of its replies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vers_rlm_mcp.folding import fold

from . import python_text
from .transcript import ERROR_CHARS, OUTPUT_CHARS, framed, truncate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vers_rlm_mcp.values import CellResult, Completion

    from .protocol import Verdict
    from .replies import ParsedReply
    from .task import Task

_FEW_STEPS = 3
"""From this many on, each message says how many steps are left."""

_EMPTY = "Your reply was empty. Write one ```python block: its code is run, and you see the output."
_ONLY_THOUGHTS = (
    "Your reply held thoughts only, which are not read. Write one ```python block behind them: its "
    "code is run, and you see the output."
)
_CUT_OFF = (
    "Your reply was cut off at the model's output limit, so nothing was run. Write a shorter one: "
    "less text, and less code per step."
)
_REFUSED = (
    "Your reply was broken off as a refusal, so nothing was run. If a part of the task is the "
    "reason, do the rest of it."
)
_BROKEN_OFF = "Your reply may not be whole: it ended in an unknown way. So nothing was run."
_STATUS = {
    "timeout": "The cell was stopped at its time limit. Do less in one cell, or start long work "
    "in the background and look at it later.",
    "died": "The REPL's process died and was started again.",
    "interrupted": "The cell was interrupted.",
}


def cell_message(task: Task, cell: CellResult, notes: Sequence[str], step: int) -> str:
    """The message about a cell's result."""
    return "\n".join(_lines(task, cell, notes, step))


def _lines(task: Task, cell: CellResult, notes: Sequence[str], step: int) -> Iterator[str]:
    yield f"Step {step} of {task.max_iterations}, {cell.seconds:.2f} s."
    if cell.output:
        yield framed("output", truncate(fold(cell.output).rstrip(), OUTPUT_CHARS), task.mark)
    elif cell.status == "ok":
        yield "It printed nothing; print what you want to see."
    if cell.status in _STATUS:
        yield _STATUS[cell.status]
    if cell.error:
        yield framed("error", truncate(fold(cell.error).rstrip(), ERROR_CHARS), task.mark)
    yield from cell.notes
    yield from notes
    yield from _steps_left(task.max_iterations - step)


def not_run(task: Task, reply: Completion, parsed: ParsedReply) -> str | None:
    """What to say about a reply of which nothing is run; None if its code is to be run.

    Whatever ended a reply before its end, half a cell is never run.
    """
    if reply.stop_reason == "length":
        is_whole = parsed.code and parsed.closed and python_text.parses(parsed.code)
        return None if is_whole else f"{_CUT_OFF} {_example(task, parsed)}"
    if reply.stop_reason == "refusal":
        return f"{_REFUSED} {_example(task, parsed)}"
    if reply.stop_reason != "end":
        return f"{_BROKEN_OFF} {_example(task, parsed)}"
    if not reply.text.strip():
        return f"{_ONLY_THOUGHTS if reply.thoughts else _EMPTY} {_example(task, parsed)}"
    if parsed.code:
        return None
    return (
        f"Your reply held {parsed.found} and no code that can be run. Write exactly one ```python "
        f"block; text outside of it is not read as an answer. {_example(task, parsed)}"
    )


def _example(task: Task, parsed: ParsedReply | None) -> str:
    """A block to copy, made of what the task has: models follow it where words do not help."""
    names = ", ".join(f"{field.name}=..." for field in task.signature.outputs)
    code = parsed.example if parsed else ""
    if not code and task.inputs:
        code = f"print(str({task.inputs[0].name})[:1000])"
    code = code or 'print(exec("ls"))'
    return (
        f"For example:\n```python\n{code}\n```\nTo answer, call `FINAL({names})` in such a block."
    )


def repeated(task: Task, count: int) -> str:
    """The message about a reply that failed in the same way as the ones before it."""
    return (
        f"This is the same failure, {count} times in a row; to repeat the cell will not change it. "
        "Take another way: look at the values that it works with, or do a smaller part first. "
        f"{_example(task, None)}"
    )


def reminder(task: Task, text: str, step: int) -> str:
    """The message about a reply that was not run."""
    most = task.max_iterations
    head = [f"Step {step} of {most}."] if step else []
    return "\n".join([*head, text, *_steps_left(most - step)])


def refusal(task: Task, faults: Sequence[str]) -> str:
    """The message about a call of FINAL that does not fit the signature."""
    wanted = ", ".join(map(str, task.signature.outputs))
    return f"FINAL was not accepted: {'; '.join(faults)}. The outputs are {wanted}. Call it again."


def rejection(task: Task, verdict: Verdict) -> str:
    """The message about an answer that the task's check refused."""
    said = truncate(fold(verdict.output).strip(), ERROR_CHARS) or "It printed nothing."
    return (
        f"FINAL was not accepted by the check `{task.verify}`, which ran in a copy of the machine:"
        f"\n{framed('check', said, task.mark)}\nMend what it found, then call FINAL again."
    )


def _steps_left(left: int) -> Iterator[str]:
    if left == 1:
        yield "One step is left: call FINAL in it with the best answer that your evidence supports."
    elif 1 < left <= _FEW_STEPS:
        yield f"{left} steps are left."
