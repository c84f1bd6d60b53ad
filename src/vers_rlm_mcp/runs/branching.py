"""Conversations that a cell starts on copies of the machine: a query, or its branches."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias

import anyio

from vers_rlm_mcp import rlm
from vers_rlm_mcp.errors import MergeConflict, UsageError, VersRlmError
from vers_rlm_mcp.kernel import Carried
from vers_rlm_mcp.machines.differences import bring_back, digest

from . import events
from .declarations import repl_functions, reserved_inputs
from .inputs import bring_in, check_inputs
from .notes import not_carried
from .workbench import DELETE_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Mapping, Sequence

    from pydantic import JsonValue

    from vers_rlm_mcp.machines.differences import Digest

    from .budget import Budget
    from .conversation import Conversation
    from .workbench import Workbench

Keep: TypeAlias = Literal["best", "none", "all"]

NOTHING = Carried((), {})
"""A copy for a fresh kernel: no variables are wanted in it."""

ELSEWHERE = (
    "What was copied is the current machine, which is not the machine that your Python ran in: "
    "your variables are missing here, or are those that a branch had there. Look before you use "
    "one."
)


@dataclass(kw_only=True)
class Child:
    """A conversation on a copy of the machine, and what came of it."""

    path: str
    about: str
    first_machine: str
    bench: Workbench
    budget: Budget
    score: float | None = None
    outcome: rlm.Outcome | None = None
    error: str | None = None
    seconds: float = 0.0

    @property
    def machine_id(self) -> str | None:
        """The machine that it ended on."""
        return self.bench.current

    @property
    def right(self) -> bool:
        """Whether it handed in outputs that may win."""
        return self.outcome is not None and self.outcome.status != "partial"

    @property
    def status(self) -> str:
        """The outcome's status; ``failed`` if there is none."""
        return self.outcome.status if self.outcome else "failed"

    @property
    def outputs(self) -> dict[str, JsonValue]:
        """What it handed in."""
        return self.outcome.outputs if self.outcome else {}

    @property
    def reason(self) -> str | None:
        """Why it ended."""
        return self.outcome.reason if self.outcome else self.error

    @property
    def steps(self) -> int:
        """How many steps it took."""
        return len(self.outcome.steps) if self.outcome else 0

    def to_json(self, *, kept: bool) -> JsonValue:
        """The result as the cell gets it."""
        return {
            "branch": self.path,
            "plan": self.about,
            "right": self.right,
            "status": self.status,
            "outputs": self.outputs,
            "error": None if self.right else self.reason,
            "verified": self.outcome is not None and self.outcome.verified,
            "score": self.score,
            "steps": self.steps,
            "machine": self.machine_id if kept else None,
            "tokens": self.budget.usage.tokens,
            "usd": self.budget.usage.usd,
            "seconds": round(self.seconds, 3),
        }

    def finished(self) -> events.ChildFinished:
        """The event of its end."""
        return events.ChildFinished(
            child=self.path,
            status=self.status,
            outputs=self.outputs,
            reason=self.reason or "It broke off.",
            score=self.score,
            steps=self.steps,
            usage=self.budget.usage,
            seconds=self.seconds,
        )


class Children:
    """The conversations that the cells of one conversation start."""

    def __init__(self, parent: Conversation) -> None:
        self._parent = parent
        self._bench = parent.bench
        self._budget = parent.budget
        self._undecided: dict[str, Child] = {}
        """Branches among which the cell itself will choose."""

    async def query(
        self,
        task: str,
        inputs: Mapping[str, JsonValue],
        outputs: str,
        seconds: float | None,
        merge: Sequence[str],
    ) -> JsonValue:
        """Give a task to a conversation with an empty REPL, and return its outputs."""
        if wrong := [name for name in inputs if not name.isidentifier()]:
            raise UsageError(f"An input of a query has a name as variables have: not {wrong[0]!r}.")
        signature = rlm.Signature.parse(
            f"{', '.join(f'{n}: any' for n in inputs)} -> {outputs}", reserved=reserved_inputs()
        )
        given = check_inputs(signature, inputs, {})
        if self._is_deepest:
            if merge:
                raise UsageError(
                    "A query is one call of the sub-model here, with no machine to merge from: "
                    "call rlmQuery without merge, or do the work here."
                )
            return await self._ask_plainly(task, inputs, signature)
        (child,) = await self._make_copies([task], "query", NOTHING, seconds)
        async with self._deleting_machines([child]):
            kernel = await child.bench.kernel(fresh=True)
            machine = await child.bench.machine()
            before = await digest(machine, merge) if merge else None
            variables, _ = await bring_in(machine, kernel, given, {})
            await self._converse(
                child, self._task_for(child, signature, inputs=variables, instructions=task)
            )
            self._parent.publish(child.finished())
            values = values_of(child, signature)
            if before:
                await self._merge(child, before)
            return values

    async def try_plans(
        self,
        plans: Sequence[str],
        carried: Carried | None,
        *,
        outputs: str | None,
        score: str | None,
        keep: Keep,
        verify: str | None,
        seconds: float | None,
    ) -> JsonValue:
        """Try plans at once, each on a copy of the machine by a copy of the conversation."""
        if self._is_deepest:
            raise UsageError(
                "A branch cannot branch again here: try the plans one after the other, with "
                "vmSnapshot() before each."
            )
        signature = rlm.Signature.parse(f"-> {outputs}") if outputs else self._parent.task.signature
        check_score(signature, score)
        with self._room_for_checks(len(plans) if verify else 0) as checks:
            children = await self._make_copies(plans, "branch", carried, seconds)
            async with self._deleting_machines(children) as kept:
                async with anyio.create_task_group() as tasks:
                    for number, child in enumerate(children, 1):
                        branch = rlm.Branch(
                            history=self._parent.cell.messages,
                            plan=child.about,
                            number=number,
                            count=len(plans),
                            notes=self._missing_variables(carried),
                        )
                        task = self._task_for(child, signature, verify=verify, branch=branch)
                        tasks.start_soon(self._converse, child, task, checks)
                kept += await self._decide(children, keep, score)
        return [child.to_json(kept=child in kept) for child in children]

    async def choose(self, scores: Mapping[str, float | None], winner: str | None) -> JsonValue:
        """Let one of the branches that were all kept win, as the cell judged."""
        undecided, self._undecided = self._undecided, {}
        async with self._deleting_machines(list(undecided.values())) as kept:
            for path, score in scores.items():
                if child := undecided.get(path):
                    child.score = score
            if winner and (best := undecided.get(winner)):
                await self._win(best)
                kept.append(best)
        return None

    @property
    def _is_deepest(self) -> bool:
        path = self._parent.path
        return (path.count(".") + 1 if path else 0) >= self._parent.run.request.max_depth

    async def _ask_plainly(
        self, task: str, inputs: Mapping[str, JsonValue], signature: rlm.Signature
    ) -> JsonValue:
        """One call of the sub-model, where no deeper conversation is allowed."""
        self._budget.reserve_sub_calls(1, time.monotonic())
        prompt = rlm.plain_prompt(task, inputs, signature, self._parent.task.mark)
        reply = await self._parent.ask_sub_model(prompt)
        checked = rlm.read_outputs(reply, signature)
        if checked.faults:
            raise UsageError(
                f"The sub-model's reply to rlmQuery is not what was asked for: "
                f"{'; '.join(checked.faults)}. Ask with llmQuery and read the reply in code."
            )
        return unwrap_outputs(checked.values, signature)

    async def _make_copies(
        self,
        about: Sequence[str],
        kind: Literal["branch", "query"],
        carried: Carried | None,
        seconds: float | None,
    ) -> list[Child]:
        """Make a copy of the current machine for each child, all from one instant."""
        parent = self._parent
        now = time.monotonic()
        iterations = max(1, parent.task.max_iterations - parent.cell.step)
        budgets = self._budget.children(len(about), iterations, seconds=seconds, now=now)
        with parent.reserved(len(about)):
            made = await self._bench.branch(len(about), carried=carried)
        children: list[Child] = []
        for text, budget, machine_id in zip(about, budgets, made.ids, strict=True):
            parent.children += 1
            path = f"{parent.path}.{parent.children}".lstrip(".")
            bench = self._bench.at(machine_id, on_event=partial(parent.run.publish, path=path))
            children.append(
                Child(path=path, about=text, first_machine=machine_id, bench=bench, budget=budget)
            )
            parent.publish(
                events.ChildStarted(child=path, origin=kind, machine_id=machine_id, about=text)
            )
        return children

    def _task_for(
        self,
        child: Child,
        signature: rlm.Signature,
        *,
        inputs: tuple[rlm.InputVariable, ...] = (),
        instructions: str = "",
        verify: str | None = None,
        branch: rlm.Branch | None = None,
    ) -> rlm.Task:
        limits = child.budget.limits
        return rlm.Task(
            signature,
            inputs=inputs,
            machine=self._parent.task.machine,
            instructions=instructions,
            max_iterations=limits.iterations or rlm.MAX_ITERATIONS,
            max_sub_calls=rlm.MAX_SUB_CALLS if limits.sub_calls is None else limits.sub_calls,
            verify=verify,
            functions=repl_functions(),
            branch=branch,
            mark=self._parent.task.mark,
            repeats_told=self._parent.task.repeats_told,
            repeats_ended=self._parent.task.repeats_ended,
        )

    async def _converse(
        self, child: Child, task: rlm.Task, checks: anyio.Semaphore | None = None
    ) -> None:
        """Hold a child's conversation. Its errors become the child's, and do not end its parent."""
        started = time.monotonic()
        try:
            await child.bench.move_in(child.first_machine)
            conversation = self._parent.child(child.path, child.bench, child.budget, task, checks)
            child.outcome = await conversation.drive()
        except VersRlmError as error:
            child.error = str(error)
        finally:
            child.bench.move_out()
        child.seconds = time.monotonic() - started

    def _missing_variables(self, carried: Carried | None) -> tuple[str, ...]:
        """Sentences on variables that branches do not have."""
        if self._bench.current != self._bench.home_id:
            return (ELSEWHERE,)
        return tuple(not_carried(carried))

    async def _decide(self, children: list[Child], keep: Keep, score: str | None) -> list[Child]:
        """Score the children, let the best one win if one should, and return those that stay."""
        for child in children:
            child.score = score_of(child, score)
            self._parent.publish(child.finished())
        if keep == "all":
            self._undecided = {child.path: child for child in children}
            return children
        if keep == "best" and (best := best_of(children, by_score=score is not None)):
            await self._win(best)
            return [best]
        return []

    async def _win(self, child: Child) -> None:
        assert child.machine_id
        await self._bench.switch(child.machine_id)
        self._bench.made.add(child.machine_id)
        self._parent.publish(events.ChildChosen(child.path, child.machine_id))

    async def _merge(self, child: Child, before: Digest) -> None:
        """Bring files of a child back. Raises `MergeConflict`, which quotes the child's answer."""
        source, target = await child.bench.machine(), await self._bench.machine()
        try:
            changed = await bring_back(source, target, before)
        except MergeConflict as error:
            # It was paid for.
            raise MergeConflict(f"{error} The query answered: {child.outputs!r:.1000}") from None
        self._parent.publish(events.FilesMerged(child.path, target.id, changed))

    @contextmanager
    def _room_for_checks(self, count: int) -> Generator[anyio.Semaphore]:
        """Set machines aside in which `count` answers are checked.

        One for each, or as many as are left after one copy for each, but at least one: no right
        answer is lost because no machine is left to check it in.
        """
        left = self._budget.machines_left(time.monotonic()) - count
        room = int(max(1, min(count, left))) if count else 0
        with self._parent.reserved(room):
            yield anyio.Semaphore(room)
        self._budget.release_machines(room)

    @asynccontextmanager
    async def _deleting_machines(self, children: list[Child]) -> AsyncGenerator[list[Child]]:
        """Stop the cell's clock; then delete the children's machines.

        The machine that a child ended on stays if the child is added to the list that this yields.
        """
        kept: list[Child] = []
        home = self._bench.home
        assert home, "a cell runs in it"
        with home.untimed():
            try:
                yield kept
            finally:
                with anyio.move_on_after(DELETE_SECONDS, shield=True):
                    async with anyio.create_task_group() as tasks:
                        for child in children:
                            stays = child.machine_id if child in kept else None
                            tasks.start_soon(self._delete_machines, child, stays)

    async def _delete_machines(self, child: Child, stays: str | None) -> None:
        """Delete a child's machines; those that cannot be deleted now are deleted with the run."""
        for machine_id in {child.first_machine, *child.bench.made} - {stays}:
            with suppress(VersRlmError):
                await child.bench.delete(machine_id)
                self._bench.made.discard(machine_id)
                owner = self._budget if machine_id == child.first_machine else child.budget
                owner.release_machines(1)
        child.bench.made.clear()


def check_score(signature: rlm.Signature, score: str | None) -> None:
    """Raise `UsageError` if branches are to be scored by something that they do not hand in."""
    names = [field.name for field in signature.outputs]
    if score is not None and score not in names:
        raise UsageError(
            f"score must be the name of an output ({', '.join(names)}) or a function of the "
            f"result, not {score[:40]!r}."
        )


def score_of(child: Child, name: str | None) -> float | None:
    """The number in the output of that name; None if there is no number."""
    value = child.outcome.outputs.get(name) if child.outcome and name else None
    return float(value) if isinstance(value, int | float) else None


def best_of(children: Sequence[Child], *, by_score: bool) -> Child | None:
    """The one with the highest score or, without scores, with the fewest steps."""
    right = [child for child in children if child.right]
    if by_score:
        scored = [child for child in right if child.score is not None]
        return max(scored, key=lambda child: child.score or 0.0, default=None)
    return min(right, key=lambda child: child.steps, default=None)


def values_of(child: Child, signature: rlm.Signature) -> JsonValue:
    """The value of a query. Raises `UsageError` if it has no outputs."""
    if not child.right:
        there = f" What there is: {child.outputs!r:.1000}" if child.outputs else ""
        raise UsageError(f"The query has no answer: {child.reason}{there}")
    return unwrap_outputs(child.outputs, signature)


def unwrap_outputs(outputs: Mapping[str, JsonValue], signature: rlm.Signature) -> JsonValue:
    """The value of a single output; of several, all of them by name."""
    if len(signature.outputs) == 1:
        return outputs[signature.outputs[0].name]
    return dict(outputs)
