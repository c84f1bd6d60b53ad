"""What a cell of a run may ask: the machine functions, sub-models, and conversations of its own."""

import time
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from types import MethodType
from typing import Annotated, Literal

import anyio
from pydantic import Field, JsonValue

from vers_rlm_mcp import rlm
from vers_rlm_mcp.errors import MergeConflict, ModelError, UsageError, VersRlmError
from vers_rlm_mcp.kernel import Carried
from vers_rlm_mcp.machines.differences import Digest, bring_back, digest
from vers_rlm_mcp.messages import Usage
from vers_rlm_mcp.models import Completion

from .calls import MAX_BRANCHES, MachineCalls, Seconds, Text, not_carried
from .children import Child, best_of, check_score, score_of, unwrapped, values_of
from .conversation import Conversation
from .inputs import bring_in, check_inputs
from .tree import Answer, Tree
from .workbench import LET_GO_SECONDS, Workbench

Plans = Annotated[list[Text], Field(min_length=1, max_length=MAX_BRANCHES)]
Keep = Literal["best", "none", "all"]

NOTHING = Carried((), {})
"""A copy for a fresh kernel: no variables are wanted in it."""

ELSEWHERE = (
    "What was copied is the current machine, which is not the machine that your Python ran in: "
    "your variables are missing here, or are those that a branch had there. Look before you use "
    "one."
)


class RunCalls(MachineCalls):
    """The functions that a cell has in a run.

    Args:
        tree: The run.
        bench: Where the conversation works.
        budget: What it may use.
        path: Its place in the tree.
        children: How many conversations it has started before, when it goes on.
    """

    def __init__(
        self,
        tree: Tree,
        bench: Workbench,
        budget: rlm.Budget,
        path: str = "",
        children: int = 0,
    ) -> None:
        super().__init__(bench)
        self.task: rlm.Task | None = None
        """What the conversation is about, once that is known."""
        self._tree = tree
        self._budget = budget
        self._path = path
        self._publish = tree.publisher(path)
        self._cell = rlm.RunCell(0, "")
        self._sub_calls = 0
        self.children = children
        self._undecided: dict[str, Child] = {}
        """Branches among which the cell itself will choose."""

    def begin(self, asked: rlm.RunCell) -> None:
        """A cell starts."""
        self._cell = asked

    def _table(self) -> Mapping[str, MethodType]:
        return {
            **super()._table(),
            "llmQuery": self.llm_query,
            "llmQueryBatched": self.llm_query_batched,
            "rlmQuery": self.rlm_query,
            "branches": self.branches,
            "chooseBranch": self.choose_branch,
            "budget": self.budget,
        }

    # Machines.

    async def vm_branch(
        self, carried: Carried | None, count: Annotated[int, Field(ge=1, le=MAX_BRANCHES)] = 1
    ) -> JsonValue:
        """Copy the current machine, within the run's budget of machines."""
        with self._reserved(count):
            return await super().vm_branch(carried, count)

    async def vm_restore(self, commit: str) -> JsonValue:
        """Make a machine from a commit, within the run's budget of machines."""
        with self._reserved(1):
            return await super().vm_restore(commit)

    @contextmanager
    def _reserved(self, machines: int) -> Generator[None]:
        self._budget.reserve_machines(machines, time.monotonic())
        try:
            yield
        except BaseException:
            self._budget.release_machines(machines, time.monotonic())
            raise

    @contextmanager
    def _room_for_checks(self, count: int) -> Generator[anyio.Semaphore]:
        """Set machines aside in which `count` answers are checked.

        One for each, or as many as there are beside one copy for each, but one at least: so a
        right answer is never lost because there is no machine left to check it in.
        """
        left = self._budget.machines_left(time.monotonic()) - count
        room = int(max(1, min(count, left))) if count else 0
        with self._reserved(room):
            yield anyio.Semaphore(room)
        self._budget.release_machines(room, time.monotonic())

    # Sub-models.

    async def llm_query(self, prompt: Text) -> JsonValue:
        """Ask the sub-model."""
        self._budget.reserve_sub_calls(1, time.monotonic())
        return await self._ask(prompt)

    async def llm_query_batched(self, prompts: list[Text]) -> JsonValue:
        """Ask the sub-model many things at once; the answers in order.

        One that fails is answered by a text that says so, since the others are paid for.
        """
        self._budget.reserve_sub_calls(len(prompts), time.monotonic())
        answers: list[str] = [""] * len(prompts)

        async def ask(index: int, prompt: str) -> None:
            try:
                answers[index] = await self._ask(prompt)
            except VersRlmError as error:
                answers[index] = f"[Error: {error}]"

        async with anyio.create_task_group() as tasks:
            for index, prompt in enumerate(prompts):
                tasks.start_soon(ask, index, prompt)
        return list[JsonValue](answers)

    async def budget(self) -> JsonValue:
        """What is used and left."""
        return dict[str, JsonValue](self._budget.snapshot(time.monotonic()))

    async def _ask(self, prompt: str) -> str:
        async with self._tree.sub_calls:
            # Checked again: what is under way may have used up the tokens or the money.
            self._budget.check(time.monotonic())
            self._sub_calls += 1
            number, started = self._sub_calls, time.monotonic()
            self._publish(rlm.SubCallStarted(self._cell.step, number, prompt))
            try:
                answer = await self._tree.ask_sub_model(prompt)
            except ModelError as error:
                nothing = Answer(Completion("", Usage()), "", recorded=False)
                self._answered(number, started, nothing, str(error))
                raise
            self._budget.settle(answer.completion.usage, recorded=answer.recorded)
            self._answered(number, started, answer)
            return answer.completion.text

    def _answered(
        self, number: int, started: float, answer: Answer, error: str | None = None
    ) -> None:
        self._publish(
            rlm.SubCallFinished(
                self._cell.step,
                number,
                answer.completion.text,
                answer.completion.usage,
                time.monotonic() - started,
                error,
                answer.request,
                answer.recorded,
            )
        )

    # Conversations of one's own.

    async def rlm_query(
        self,
        task: Text,
        inputs: dict[str, JsonValue],
        outputs: str = "answer",
        seconds: Seconds | None = None,
        merge: list[Text] | None = None,
    ) -> JsonValue:
        """Have a task worked on in a conversation of its own, on a copy of the current machine.

        The paths to `merge` are brought back into the current machine when it has an answer.
        """
        if wrong := [name for name in inputs if not name.isidentifier()]:
            raise UsageError(f"An input of a query has a name as variables have: not {wrong[0]!r}.")
        signature = rlm.Signature.parse(f"{', '.join(f'{n}: any' for n in inputs)} -> {outputs}")
        given = check_inputs(signature, inputs, {})
        if self._is_deepest:
            if merge:
                raise UsageError(
                    "A query is one call of the sub-model here, with no machine to merge from: "
                    "call rlmQuery without merge, or do the work here."
                )
            return await self._ask_plainly(task, inputs, signature)
        (child,) = await self._copies([task], "query", NOTHING, seconds)
        async with self._ending([child]):
            kernel = await child.bench.kernel(fresh=True)
            machine = await child.bench.machine()
            before = await digest(machine, merge) if merge else None
            variables, _ = await bring_in(machine, kernel, given, {})
            query = self._task_for(child, signature, inputs=variables, instructions=task)
            await self._converse(child, query)
            self._publish(child.finished())
            values = values_of(child, signature)
            if before:
                await self._merge(child, before)
            return values

    async def _merge(self, child: Child, before: Digest) -> None:
        """Bring files of a child back. Raises `MergeConflict`, with the answer that is there."""
        source, target = await child.bench.machine(), await self._bench.machine()
        try:
            changed = await bring_back(source, target, before)
        except MergeConflict as error:
            # It was paid for.
            raise MergeConflict(f"{error} The query answered: {child.outputs!r:.1000}") from None
        self._publish(rlm.FilesMerged(child.path, target.id, changed))

    async def branches(
        self,
        plans: Plans,
        carried: Carried | None,
        outputs: str | None = None,
        score: str | None = None,
        keep: Keep = "best",
        verify: str | None = None,
        seconds: Seconds | None = None,
    ) -> JsonValue:
        """Try plans at once, each on a copy of the machine by a copy of the conversation."""
        if self._is_deepest:
            raise UsageError(
                "A branch cannot branch again here: try the plans one after the other, with "
                "vmSnapshot() before each."
            )
        signature = rlm.Signature.parse(f"-> {outputs}") if outputs else self._my_task.signature
        check_score(signature, score)
        with self._room_for_checks(len(plans) if verify else 0) as checks:
            children = await self._copies(plans, "branch", carried, seconds)
            async with self._ending(children) as kept:
                async with anyio.create_task_group() as tasks:
                    for number, child in enumerate(children, 1):
                        branch = rlm.Branch(
                            self._cell.messages,
                            child.about,
                            number,
                            len(plans),
                            self._lacking(carried),
                        )
                        task = self._task_for(child, signature, verify=verify, branch=branch)
                        tasks.start_soon(self._converse, child, task, checks)
                kept += await self._decided(children, keep, score)
        return [child.to_json(kept=child in kept) for child in children]

    def _lacking(self, carried: Carried | None) -> tuple[str, ...]:
        """What to say of variables that branches do not have."""
        if self._bench.current != self._bench.home_id:
            return (ELSEWHERE,)
        return tuple(not_carried(carried))

    async def _decided(self, children: list[Child], keep: Keep, score: str | None) -> list[Child]:
        """Score the children, let the best one win if that is wanted, and return who stays."""
        for child in children:
            child.score = score_of(child, score)
            self._publish(child.finished())
        if keep == "all":
            self._undecided = {child.path: child for child in children}
            return children
        if keep == "best" and (best := best_of(children, by_score=score is not None)):
            await self._win(best)
            return [best]
        return []

    async def choose_branch(self, scores: dict[str, float | None], winner: str | None) -> JsonValue:
        """Let one of the branches that were all kept win, by the cell's own judgement."""
        undecided, self._undecided = self._undecided, {}
        async with self._ending(list(undecided.values())) as kept:
            for path, score in scores.items():
                if child := undecided.get(path):
                    child.score = score
            if winner and (best := undecided.get(winner)):
                await self._win(best)
                kept.append(best)
        return None

    @property
    def _is_deepest(self) -> bool:
        depth = self._path.count(".") + 1 if self._path else 0
        return depth >= self._tree.max_depth

    @property
    def _my_task(self) -> rlm.Task:
        assert self.task, "cells run in a conversation about a task"
        return self.task

    async def _copies(
        self,
        about: Sequence[str],
        kind: Literal["branch", "query"],
        carried: Carried | None,
        seconds: float | None,
    ) -> list[Child]:
        """Make a copy of the current machine for each child, all from one instant."""
        now = time.monotonic()
        iterations = max(1, self._my_task.max_iterations - self._cell.step)
        budgets = self._budget.children(len(about), iterations, seconds=seconds, now=now)
        with self._reserved(len(about)):
            made = await self._bench.branch(len(about), carried=carried)
        children: list[Child] = []
        for text, budget, info in zip(about, budgets, made.machines, strict=True):
            self.children += 1
            path = f"{self._path}.{self.children}".lstrip(".")
            bench = self._bench.at(info.id, on_event=self._tree.publisher(path))
            children.append(Child(path, text, info.id, bench, budget))
            self._publish(rlm.ChildStarted(path, kind, info.id, text))
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
            inputs,
            (),
            self._my_task.machine,
            instructions,
            limits.iterations or rlm.MAX_ITERATIONS,
            rlm.MAX_SUB_CALLS if limits.sub_calls is None else limits.sub_calls,
            verify,
            branch,
        )

    async def _converse(
        self, child: Child, task: rlm.Task, checks: anyio.Semaphore | None = None
    ) -> None:
        """Hold a child's conversation; whatever goes wrong in it is its own affair."""
        calls = RunCalls(self._tree, child.bench, child.budget, child.path)
        calls.task = task
        started = time.monotonic()
        try:
            await child.bench.move_in(child.first_machine)
            conversation = Conversation(
                self._tree, child.bench, child.budget, calls, child.path, checks=checks
            )
            child.outcome = await conversation.drive(task)
        except VersRlmError as error:
            child.error = str(error)
        finally:
            child.bench.move_out()
        child.seconds = time.monotonic() - started

    async def _win(self, child: Child) -> None:
        assert child.machine_id
        await self._bench.switch(child.machine_id)
        self._bench.made.add(child.machine_id)
        self._publish(rlm.ChildChosen(child.path, child.machine_id))

    @asynccontextmanager
    async def _ending(self, children: list[Child]) -> AsyncGenerator[list[Child]]:
        """Stop the cell's clock; then delete the children's machines.

        The machine that a child ended on stays if the child is put into the list given here.
        """
        kept: list[Child] = []
        home = self._bench.home
        assert home, "a cell runs in it"
        with home.untimed():
            try:
                yield kept
            finally:
                with anyio.move_on_after(LET_GO_SECONDS, shield=True):
                    async with anyio.create_task_group() as tasks:
                        for child in children:
                            stays = child.machine_id if child in kept else None
                            tasks.start_soon(self._clear_away, child, stays)

    async def _clear_away(self, child: Child, stays: str | None) -> None:
        """Delete what a child leaves; what cannot be deleted now goes with the run."""
        now = time.monotonic
        for machine_id in {child.first_machine, *child.bench.made} - {stays}:
            with suppress(VersRlmError):
                await child.bench.delete(machine_id)
                self._bench.made.discard(machine_id)
                owner = self._budget if machine_id == child.first_machine else child.budget
                owner.release_machines(1, now())
        child.bench.made.clear()

    async def _ask_plainly(
        self, task: str, inputs: Mapping[str, JsonValue], signature: rlm.Signature
    ) -> JsonValue:
        """Where no deeper conversation is allowed: one call of the sub-model."""
        self._budget.reserve_sub_calls(1, time.monotonic())
        reply = await self._ask(rlm.plain_prompt(task, inputs, signature))
        checked = rlm.read_outputs(reply, signature)
        if checked.faults:
            raise UsageError(
                f"The sub-model's reply to rlmQuery is not what was asked for: "
                f"{'; '.join(checked.faults)}. Ask with llmQuery and read the reply in code."
            )
        return unwrapped(checked.values, signature)
