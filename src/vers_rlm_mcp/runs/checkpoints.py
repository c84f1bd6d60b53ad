"""Makes checkpoints of a run, commits of its machines after steps, and restores them."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio

from vers_rlm_mcp.errors import KernelError, MachineError, UsageError

from . import events
from .notes import listed, not_carried
from .workbench import DELETE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vers_rlm_mcp import rlm
    from vers_rlm_mcp.kernel import Carried

    from .budget import Budget
    from .context import RunContext
    from .workbench import Workbench

SHARE = 0.1
"""The part of a run's time that checkpoints after changes may take."""

ALLOWANCE = 1.0
"""Seconds that they may take in any case, so that short runs get some."""

TOO_LARGE = ("OverflowError", "MemoryError")
"""How the reasons begin why large variables are not in a checkpoint."""

DESTRUCTIVE = re.compile(
    r"""\brm\s+-|rmtree|os\.(?:remove|unlink|rename|replace)|\.unlink\(|\bmv\s|\bshred\b|\bdd\s
    |\bmkfs|\btruncate\b|\b(?:p|kill)?kill(?:all)?\b|\b(?:chmod|chown)\s+-R|\bsed\s+-i
    |\bgit\s+(?:reset|clean|checkout|restore|rebase|stash)|\b(?:uninstall|remove|purge)\b
    |\b(?:drop|delete\s+from|truncate\s+table|alter\s+table)\b""",
    re.IGNORECASE | re.VERBOSE,
)
"""Code that may destroy what cannot be recreated. A wrong guess costs one commit."""


class Checkpoints:
    """Makes the checkpoints of a run's own conversation, and restores its machine from them.

    Args:
        run: The run.
        bench: The workbench of its own conversation.
        budget: The budget of the run.
        last: The checkpoint that the run resumes from, if any.
    """

    def __init__(
        self,
        run: RunContext,
        bench: Workbench,
        budget: Budget,
        last: events.CheckpointMade | None = None,
    ) -> None:
        self.problem: str | None = None
        """Why the last one could not be made, as a whole sentence."""
        self._run = run
        self._policy = run.settings.checkpoints
        self._bench = bench
        self._budget = budget
        self._last = last
        self._changed = False
        self._recoveries_left = run.settings.max_recoveries
        self._started = time.monotonic()
        self._spent = 0.0
        self._told: set[str] = set()
        self._notes: list[str] = []

    def take_notes(self) -> Sequence[str]:
        """Sentences for the model that it was not told yet."""
        notes, self._notes = self._notes, []
        return notes

    async def commit_after_step(
        self, step: int, messages: int, exchange: str, children: int
    ) -> None:
        """Make a checkpoint of a step if the policy says so, and always of the set-up (step 0)."""
        if step == 0 or (self._policy == "step" or (self._policy == "change" and self._changed)):
            await self._make(step, messages, exchange, children)

    async def commit_before_cell(self, asked: rlm.RunCell, exchange: str, children: int) -> None:
        """Make a checkpoint before a cell that may destroy something, if the policy says so."""
        if self._policy == "destructive" and DESTRUCTIVE.search(asked.code):
            await self._make(asked.step - 1, len(asked.messages) - 1, exchange, children)
        self._changed = True

    async def recover(self, step: int, why: str) -> tuple[str, ...] | None:
        """Restore the run's machine from its last checkpoint after a cell has broken it.

        Returns:
            Whole sentences for the model; None if it cannot be restored: no checkpoint, no
            recovery left, or a machine that the run did not make.

        Raises:
            MachineError: It could not be restored.
        """
        last, lost = self._last, self._bench.home_id
        if last is None or lost not in self._bench.made or not self._recoveries_left:
            return None
        self._recoveries_left -= 1
        self._bench.move_out()
        with anyio.move_on_after(DELETE_SECONDS), suppress(MachineError, KernelError):
            await self._bench.delete(lost)  # else the end of the run does
        notes = await restore(self._bench, last)
        assert self._bench.home_id
        self._run.publish(
            events.MachineRecovered(
                step=step,
                why=why,
                lost_id=lost,
                machine_id=self._bench.home_id,
                checkpoint=last.step,
            )
        )
        self._changed = False
        return (
            f"The machine was put back to what it was {_at_the_end_of(last.step)}: its files and "
            f"variables are those of then, and what was done since is gone. It is called "
            f"{self._bench.home_id} now. {_times_more(self._recoveries_left)}",
            *notes,
        )

    async def _make(self, step: int, messages: int, exchange: str, children: int) -> None:
        if self._policy == "off" or (self._last and self._last.step == step):
            return
        if self._policy == "change" and not self._can_afford():
            return
        started = time.monotonic()
        try:
            self._last = await self._commit(step, messages, exchange, children, started)
        except (MachineError, KernelError, UsageError) as error:
            self.problem = f"No checkpoint could be made after step {step}: {error}"
        else:
            self.problem = None
            self._changed = False
            self._run.publish(self._last)
        self._spent += time.monotonic() - started

    def _can_afford(self) -> bool:
        dearest = self._last.seconds if self._last else 0.0
        elapsed = time.monotonic() - self._started
        return self._spent + dearest <= max(ALLOWANCE, elapsed * SHARE)

    async def _commit(
        self, step: int, messages: int, exchange: str, children: int, started: float
    ) -> events.CheckpointMade:
        home, current = self._bench.home_id, self._bench.current
        assert home, "a conversation has one"
        current = current or home
        made = await self._bench.checkpoint(home, step)
        if made.carried and _disk_failed(made.carried):
            # An older one, with variables, is the better place to go back to.
            raise MachineError(f"the variables could not be saved: {made.carried.lost}")
        other = await self._bench.checkpoint(current, step) if current != home else None
        return events.CheckpointMade(
            step=step,
            commit_id=made.commit.id,
            machine_id=home,
            current_commit_id=other and other.commit.id,
            current_id=current,
            messages=messages,
            fingerprint=exchange,
            # The iteration of the next step is reserved already.
            used=self._budget.used(started) | {"iterations": step},
            children=children,
            not_carried=tuple(not_carried(made.carried)),
            too_large=self._describe_too_large(made.carried),
            seconds=time.monotonic() - started,
        )

    def _describe_too_large(self, carried: Carried | None) -> str:
        """A sentence on variables that are too large for checkpoints, if they were not told yet."""
        if carried is None:
            return ""
        names = [name for name, why in carried.lost.items() if why.startswith(TOO_LARGE)]
        if self._told.issuperset(names):
            return ""
        self._told.update(names)
        sentence = (
            f"Checkpoints of this run are without {listed(names, ', ')}: too large to be saved. "
            "They are lost if the machine has to be put back; keep in files what you need then."
        )
        self._notes.append(sentence)
        return sentence


async def restore(bench: Workbench, checkpoint: events.CheckpointMade) -> tuple[str, ...]:
    """Restore the machines of a checkpoint and move into the kernel.

    Returns whole sentences on variables that it does not have.

    Raises:
        MachineError: They cannot be made.
        UnknownHandle: Its commit was deleted.
    """
    machine = await bench.restore(checkpoint.commit_id)
    kernel = await bench.move_in(machine.id)
    if checkpoint.current_commit_id:
        await bench.restore(checkpoint.current_commit_id)
    return tuple(not_carried(kernel.carried, "this machine")) if kernel.carried else ()


def _disk_failed(carried: Carried) -> bool:
    return any(reason.startswith("OSError") for reason in carried.lost.values())


def _at_the_end_of(step: int) -> str:
    return f"at the end of step {step}" if step else "before step 1"


def _times_more(left: int) -> str:
    if not left:
        return "This was the last time: the next one that breaks it ends the run."
    return f"That can be done {left} more time{'' if left == 1 else 's'}."
