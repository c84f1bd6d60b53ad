"""Shows a run in the terminal: a line for each thing that happened, and what happens now below.

What happens now is drawn only on a terminal. Everything goes to standard error.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from vers_rlm_mcp import runs
from vers_rlm_mcp.runs import events
from vers_rlm_mcp.store import Journals
from vers_rlm_mcp.values import Usage

from .terminal import format_tokens, make_safe, print_safe

if TYPE_CHECKING:
    from rich.console import RenderableType

    from vers_rlm_mcp import rlm
    from vers_rlm_mcp.python_api import RunStream
    from vers_rlm_mcp.settings import Settings

REFRESHES_PER_SECOND = 8
BAR_WIDTH = 20
CODE_CHARS = 200
"""Length to which the line of a running conversation is cut; the terminal cuts it again."""


async def watch(run: RunStream, settings: Settings, *, quiet: bool) -> runs.RunResult:
    """Show a run until it ends. If it is interrupted, say how to resume it."""
    view = LiveView(settings)
    console = Console(stderr=True, quiet=quiet)
    try:
        with Live(
            get_renderable=view.render,
            console=console,
            refresh_per_second=REFRESHES_PER_SECOND,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        ):
            async for event in run:
                if line := view.follow(event):
                    print_safe(console, line)
    except anyio.get_cancelled_exc_class():
        print(_describe_interruption(view.run_id, settings), file=sys.stderr)
        raise
    return run.result


@dataclass
class Conversation:
    """What one conversation of a run is doing."""

    step: int = 0
    doing: str = "getting a machine ready"
    asked: int = 0
    answered: int = 0


@dataclass
class LiveView:
    """The state of a run as its events tell it."""

    settings: Settings
    run_id: str = ""
    usage: Usage = field(default_factory=Usage)
    max_steps: int = 0
    conversations: dict[str, Conversation] = field(default_factory=lambda: {"": Conversation()})
    """Those under way by their paths, the run's own under the empty one."""
    _started: float = field(default_factory=time.monotonic)
    _spinner: Spinner = field(default_factory=lambda: Spinner("line"))  # in ASCII

    def follow(self, event: rlm.Event) -> str | None:
        """Take an event in; returns the line that tells of it, if any."""
        path, inner = (
            (event.child, event.event) if isinstance(event, events.InChild) else ("", event)
        )
        self._update(path, inner)
        if isinstance(inner, events.SubCallStarted):
            return None  # they are counted in the line of their conversation
        return runs.narrate(event)

    def render(self) -> RenderableType:
        """What happens now: a line for the run, and one for each conversation under way."""
        rows = Table.grid(padding=(0, 1))
        spending = Text(self._describe_spending(), no_wrap=True, overflow="crop")
        rows.add_row(self._spinner, spending)
        for path, each in list(self.conversations.items()):
            name = f"[{path}] " if path else ""
            text = make_safe(f"{name}step {each.step}: {each.doing}")
            text.no_wrap, text.overflow = True, "crop"
            rows.add_row("", text)
            if each.asked > each.answered:
                rows.add_row("", _draw_sub_calls(each))
        return rows

    def _update(self, path: str, event: rlm.Event) -> None:
        mine = self.conversations.setdefault(path, Conversation())
        match event:
            case events.RunStarted():
                self.run_id, self.max_steps = event.run_id, event.max_steps
            case events.RunResumed():
                self.run_id, mine.step = event.run_id, event.step
            case events.ModelAsked():
                mine.step, mine.doing = event.step, "the model is thinking"
            case events.ModelReplied():
                self._spend(event.usage, recorded=event.recorded)
            case events.CellStarted():
                mine.doing = "running " + " ".join(event.code.split())[:CODE_CHARS]
                mine.asked = mine.answered = 0
            case events.CellOutput() if lines := event.text.strip().splitlines():
                mine.doing = lines[-1][-CODE_CHARS:]
            case events.SubCallStarted():
                mine.asked += 1
            case events.SubCallFinished():
                mine.answered += 1
                self._spend(event.usage, recorded=event.recorded)
            case events.ChildFinished():
                self.conversations.pop(event.child, None)
            case _:
                pass

    def _spend(self, usage: Usage, *, recorded: bool) -> None:
        if not recorded:
            self.usage += usage

    def _describe_spending(self) -> str:
        """Time, tokens and money so far, each with its limit."""
        limits, used = self.settings, self.usage
        seconds = time.monotonic() - self._started
        parts = [
            f"{seconds:.0f} of {limits.max_seconds:.0f} s",
            f"{format_tokens(used)}{_of(limits.max_tokens)} tokens",
        ]
        if used.usd is not None and (used.usd or limits.max_usd):
            parts.append(f"{used.usd:.4f}{_of(limits.max_usd)} USD")
        return ", ".join(parts)


def _of(limit: float | None) -> str:
    return "" if limit is None else f" of {limit:,}"


def _draw_sub_calls(each: Conversation) -> RenderableType:
    row = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=each.asked, completed=each.answered, width=BAR_WIDTH)
    row.add_row("llmQuery", bar, f"{each.answered} of {each.asked}")
    return row


def _describe_interruption(run_id: str, settings: Settings) -> str:
    """What an interruption left, and how to resume the run."""
    if not run_id:
        return "\nInterrupted before the run began; nothing is left."
    about = runs.summary(Journals(settings.state_dir).of(run_id))
    how = (
        f"Resume it with `vers-rlm-mcp runs resume {run_id}`: replies are not paid for twice."
        if about.checkpoints or about.can_restart
        else "It made no checkpoint and cannot be resumed."
    )
    return f"\nInterrupted: {run_id} is recorded, and its machines are being deleted. {how}"
