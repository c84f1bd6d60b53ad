"""Reads models' replies to a step.

Blocks marked as Python are run in order, as one cell. Unmarked blocks are run only if there are
none of these and they are Python; blocks of other languages never are, and prose never is. A reply
in another form that models are trained on is taken if its meaning is beyond doubt (`forms`). What
is not run is named, so that the model can be told.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING

from . import python_text
from .fences import INVISIBLE, SHELLS, Block, find_blocks
from .forms import read_form, take_off_tags
from .signature import FINALS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .forms import Form

_MAX_PARAGRAPHS = 10
"""Paragraphs at the end of a reply in which code without a fence is looked for."""
UNSEEN = (
    "A later block of your reply called FINAL; it and what followed it were not run. Read the "
    "output above first, then answer."
)


@dataclass(frozen=True, slots=True)
class ParsedReply:
    """The parts of a step's reply."""

    reasoning: str
    """The text around the code."""
    code: str
    """The code to run; empty if there is none."""
    closed: bool = True
    """False if the code's last block has no end."""
    left_out: int = 0
    """How many blocks `parse_reply` left out because their answer rests on what was not seen."""
    notes: tuple[str, ...] = ()
    """Whole sentences on how the reply was read, if it was not what was asked for."""
    found: str = ""
    """What there is instead of code, as the object of "Your reply held"."""
    example: str = ""
    """The code that seems to be meant, if there is none to run."""


def parse_reply(text: str) -> ParsedReply:
    """Find the code in a reply.

    A fence inside a string of the code does not close its block. If a later block calls
    ``FINAL``, it and all that follow are left out: an answer must rest on output that was seen,
    and models do write down the output they expect and continue from there.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").lstrip(INVISIBLE)
    if whole := read_form(text, is_whole=True):
        return _read_form(text, whole)
    blocks = [block for block in find_blocks(text) if block.code.strip()]
    found = [block for block in blocks if block.is_python] or _unmarked(blocks)
    if found:
        return _read_blocks(text, blocks, found)
    if form := read_form(text, is_whole=False):
        return _read_form(text, form)
    what, example = _describe(text, blocks)
    return ParsedReply(text.strip(), "", found=what, example=example)


def _unmarked(blocks: Sequence[Block]) -> list[Block]:
    """The blocks without a language that are Python. One alone need not be a whole program."""
    unmarked = [block for block in blocks if not block.language]
    is_python = python_text.is_cell if len(unmarked) == 1 else python_text.is_program
    return [
        block
        for block in unmarked
        if is_python(python_text.repair(block.code)[0]) or python_text.is_transcript(block.code)
    ]


def _read_blocks(text: str, blocks: Sequence[Block], found: Sequence[Block]) -> ParsedReply:
    run = [found[0], *takewhile(lambda block: not block.calls_final, found[1:])]
    notes: list[str] = []
    parts: list[str] = []
    for block in run:
        code = block.code
        if python_text.is_transcript(code):
            code, wrote_output = python_text.transcript_code(code)
            if wrote_output:
                notes.append("Only the lines behind `>>>` were run; the outputs are not yours.")
        code, repairs = python_text.repair(take_off_tags(code))
        notes += [f"Your code held {said}, which were taken as meant." for said in repairs]
        parts.append(code)
    shells = [block for block in blocks if block.language in SHELLS]
    if shells:
        notes.append(
            f"The {shells[0].language} block of your reply was not run: only Python is. Shell "
            "commands are run with `exec(command)`."
        )
    reasoning = _without(text, found)
    if any(line.startswith(("FINAL(", "FINAL_VAR(")) for line in reasoning.splitlines()):
        notes.append("A call of FINAL outside of the block was not read; write it into a block.")
    if len(run) < len(found):
        notes.append(UNSEEN)
    code = python_text.join(parts)
    notes += python_text.foreign_habits(code)
    if not run[-1].closed and not python_text.parses(code):
        notes.append("Your block has no closing ```, so all that follows was taken as code.")
    return ParsedReply(
        reasoning=reasoning,
        code=code,
        closed=run[-1].closed,
        left_out=len(found) - len(run),
        notes=tuple(dict.fromkeys(notes)),
    )


def _read_form(text: str, form: Form) -> ParsedReply:
    """A reply in another form, whose parts are read as blocks are."""
    if not form.code:
        return ParsedReply(text.strip(), "", found=form.found, example=form.example)
    blocks = [Block("python", code, 0, 0) for code in form.code]
    parsed = _read_blocks("", (), blocks)
    reasoning = "" if form.code == (text.strip(),) else text.strip()
    notes = (*form.notes, *parsed.notes)
    return replace(parsed, reasoning=reasoning, closed=form.closed, notes=notes)


def _describe(text: str, blocks: Sequence[Block]) -> tuple[str, str]:
    """What a reply without code holds, and the code that seems to be meant."""
    for block in blocks:
        if block.language in SHELLS:
            return f"a {block.language} block", f"print(exec({block.code!r}))"
    for block in blocks:
        if block.language:
            return f"a {block.language} block", ""
    if blocks:
        return "a block without a language that is not Python", ""
    if call := _final_in(text):
        return "a call of FINAL outside of a block", call
    if code := _program_in(text):
        return "code outside of a block", code
    if "```" in text or "~~~" in text:
        return "a block with nothing in it", ""
    return "text only", ""


def _final_in(text: str) -> str:
    """A line of prose that calls FINAL, as code; empty if there is none."""
    lines = (line.strip().strip("`") for line in text.splitlines())
    call = next((line for line in lines if line.startswith(("FINAL(", "FINAL_VAR("))), "")
    if not call or python_text.call_of(call, FINALS):
        return call
    return f"FINAL({call.partition('(')[2].rstrip(')')!r})"


def _program_in(text: str) -> str:
    """The paragraphs at the end of a text that are a program; empty if there are none."""
    paragraphs = text.strip().split("\n\n")[-_MAX_PARAGRAPHS:]
    ends = ("\n\n".join(paragraphs[start:]) for start in range(len(paragraphs)))
    return next(filter(python_text.is_program, ends), "")


def _without(text: str, blocks: Sequence[Block]) -> str:
    starts = [0, *(block.end for block in blocks)]
    ends = [*(block.start for block in blocks), len(text)]
    parts = (text[start:end].strip() for start, end in zip(starts, ends, strict=True))
    return "\n\n".join(part for part in parts if part)
