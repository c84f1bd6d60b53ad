"""Messages to the model after each of its replies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .transcript import ERROR_CHARS, OUTPUT_CHARS, truncate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vers_rlm_mcp.values import CellResult

    from .protocol import Verdict
    from .signature import Signature

_FEW_STEPS = 3
"""From this many on, each message says how many steps are left."""

EMPTY = "Your reply was empty. Write one ```python block: its code is run, and you see the output."
NO_CODE = (
    "Your reply held no code that can be run. Write exactly one ```python block; to answer, call "
    "FINAL(...) in it. Text outside of the block is not read as an answer."
)
CUT_OFF = (
    "Your reply was cut off at the model's output limit, so nothing was run. Write a shorter one: "
    "less text, and less code per step."
)
UNSEEN = (
    "A later block of your reply called FINAL; it and what followed it were not run. Read the "
    "output above first, then answer."
)
_STATUS = {
    "timeout": "The cell was stopped at its time limit. Do less in one cell, or start long work "
    "in the background and look at it later.",
    "died": "The REPL's process died and was started again.",
    "interrupted": "The cell was interrupted.",
}


def cell_message(cell: CellResult, notes: Sequence[str], step: int, max_steps: int) -> str:
    """The message about a cell's result."""
    return "\n".join(_lines(cell, notes, step, max_steps))


def _lines(cell: CellResult, notes: Sequence[str], step: int, max_steps: int) -> Iterator[str]:
    yield f"Step {step} of {max_steps}, {cell.seconds:.2f} s."
    if cell.output:
        yield f"<output>\n{truncate(cell.output.rstrip(), OUTPUT_CHARS)}\n</output>"
    elif cell.status == "ok":
        yield "It printed nothing; print what you want to see."
    if cell.status in _STATUS:
        yield _STATUS[cell.status]
    if cell.error:
        yield f"<error>\n{truncate(cell.error.rstrip(), ERROR_CHARS)}\n</error>"
    yield from cell.notes
    yield from notes
    yield from _steps_left(max_steps - step)


def reminder(text: str, step: int, max_steps: int) -> str:
    """The message about a reply that was not run."""
    return "\n".join([f"Step {step} of {max_steps}.", text, *_steps_left(max_steps - step)])


def refusal(signature: Signature, faults: Sequence[str]) -> str:
    """The message about a call of FINAL that does not fit the signature."""
    wanted = ", ".join(map(str, signature.outputs))
    return f"FINAL was not accepted: {'; '.join(faults)}. The outputs are {wanted}. Call it again."


def rejection(command: str, verdict: Verdict) -> str:
    """The message about an answer that the task's check refused."""
    said = truncate(verdict.output.strip(), ERROR_CHARS) or "It printed nothing."
    return (
        f"FINAL was not accepted by the check `{command}`, which ran in a copy of the machine:\n"
        f"<check>\n{said}\n</check>\nMend what it found, then call FINAL again."
    )


def _steps_left(left: int) -> Iterator[str]:
    if left == 1:
        yield "One step is left: call FINAL in it with the best answer that your evidence supports."
    elif 1 < left <= _FEW_STEPS:
        yield f"{left} steps are left."
