"""What the tests of runs have in common: a place to run them in, and models."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from vers_rlm_mcp import rlm
from vers_rlm_mcp.models import FREE, Model, open_model
from vers_rlm_mcp.runs import (
    Replay,
    RunRequest,
    RunResult,
    Workbench,
    events,
    replay,
    resume,
    run,
    run_cell,
    summaries,
)
from vers_rlm_mcp.store import Journals
from vers_rlm_mcp.values import Completion, Message, Usage

if TYPE_CHECKING:
    from pathlib import Path

    from vers_rlm_mcp.machines import Fleet
    from vers_rlm_mcp.settings import Settings

Answer = Callable[[Sequence[Message]], Awaitable[Completion]]

E = TypeVar("E", bound=rlm.Event)


class Speaker(Model):
    """A model whose answers a function gives, and which remembers what it was asked."""

    price = FREE

    def __init__(self, answer: Answer, name: str = "speaker:test") -> None:
        self.name = name
        self.asked: list[Sequence[Message]] = []
        self._answer = answer

    async def complete(
        self, messages: Sequence[Message], *, max_tokens: int | None = None
    ) -> Completion:
        self.asked.append(messages)
        return await self._answer(messages)

    async def aclose(self) -> None:
        pass


class Turns(Speaker):
    """Says one thing after the other; an error among them is raised."""

    def __init__(self, *turns: str | Exception, usage: Usage | None = None) -> None:
        super().__init__(self._next, "turns:test")
        self._turns = turns
        self._usage = usage or Usage()

    async def _next(self, messages: Sequence[Message]) -> Completion:
        turn = self._turns[sum(message.role == "assistant" for message in messages)]
        if isinstance(turn, Exception):
            raise turn
        return Completion(turn, self._usage)

    @property
    def told(self) -> str:
        """The message that it saw last."""
        return self.asked[-1][-1].content


@dataclass
class Lab:
    """Runs things, and keeps what happened."""

    fleet: Fleet
    settings: Settings
    directory: Path
    events: list[rlm.Event] = field(default_factory=list[rlm.Event])

    async def run(
        self,
        signature: str,
        model: Model,
        *,
        sub_model: Model | None = None,
        settings: dict[str, Any] | None = None,
        on_event: Callable[[rlm.Event], None] = lambda _: None,
        seconds: float = 40,
        **request: Any,
    ) -> RunResult:
        """One run; 40 seconds are far more than most of these tests need."""

        def watch(event: rlm.Event) -> None:
            self.events.append(event)
            on_event(event)

        with anyio.fail_after(seconds):
            return await run(
                RunRequest(signature, **request),
                fleet=self.fleet,
                model=model,
                sub_model=sub_model or model,
                settings=self.settings.model_copy(update=settings or {}),
                on_event=watch,
            )

    async def resume(
        self,
        run_id: str,
        model: Model,
        *,
        settings: dict[str, Any] | None = None,
        on_event: Callable[[rlm.Event], None] = lambda _: None,
        seconds: float = 40,
        **how: Any,
    ) -> RunResult:
        """Go on with a run."""

        def watch(event: rlm.Event) -> None:
            self.events.append(event)
            on_event(event)

        with anyio.fail_after(seconds):
            return await resume(
                run_id,
                fleet=self.fleet,
                model=model,
                sub_model=how.pop("sub_model", model),
                settings=self.settings.model_copy(update=settings or {}),
                on_event=watch,
                **how,
            )

    async def replay(self, run_id: str, **how: Any) -> Replay:
        """Perform a run again."""
        with anyio.fail_after(40):
            return await replay(
                run_id,
                fleet=self.fleet,
                settings=self.settings,
                on_event=self.events.append,
                **how,
            )

    async def cell(
        self, bench: Workbench, code: str, machine_id: str | None = None, timeout: float = 10
    ) -> str:
        """The output of a cell that must succeed, with the notes on it."""
        result, notes = await run_cell(bench, code, timeout=timeout, machine_id=machine_id)
        assert result.status == "ok", result
        return "\n".join([result.output.rstrip("\n"), *notes])

    def bench(self) -> Workbench:
        return Workbench(self.fleet, self.settings)

    def scripted(self, *replies: str) -> Model:
        """A model that reads these replies from a script, fields and all."""
        path = self.directory / f"script-{hash(replies)}"
        path.write_text("".join(f"--- reply{reply}\n" for reply in replies))
        return open_model(f"scripted:{path}")

    async def machines(self) -> list[str]:
        return [info.id for info in await self.fleet.list()]

    def happened(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    def happened_anywhere(self, kind: type[E]) -> list[E]:
        """In the conversations of children, too."""
        inner = [
            event.event if isinstance(event, events.InChild) else event for event in self.events
        ]
        return [event for event in inner if isinstance(event, kind)]

    def journal_ids(self) -> list[str]:
        return [each.id for each in summaries(Journals(self.settings.state_dir))]

    def journal(self, result_or_id: RunResult | str) -> list[dict[str, Any]]:
        run_id = result_or_id if isinstance(result_or_id, str) else result_or_id.run_id
        text = (self.settings.state_dir / "runs" / run_id / "events.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]


class Interrupted(Exception):
    """Stands for whatever ends a process."""


def stop_when(kind: type[rlm.Event], step: int) -> Callable[[rlm.Event], None]:
    """What ends a run when this happens in that step."""

    def look(event: rlm.Event) -> None:
        if isinstance(event, kind) and getattr(event, "step", None) == step:
            raise Interrupted

    return look


def cell(code: str, reasoning: str = "Let me see.") -> str:
    """A reply that holds code."""
    return f"{reasoning}\n```python\n{code}\n```"


async def cancelled_within(seconds: float, work: Callable[[], Awaitable[object]], at: anyio.Event):
    """Cancel `work` once `at` is set, and see that it ends in time."""
    done = anyio.Event()

    async def do() -> None:
        try:
            await work()
        finally:
            done.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(do)
        with anyio.fail_after(40):
            await at.wait()
        started = anyio.current_time()
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await done.wait()
        assert anyio.current_time() - started < seconds


HITHER_AND_THITHER = """
writeFile("/workspace/plan", "a")
home, commit = currentVmId(), vmSnapshot()
branch = vmBranch()
writeFile("/workspace/plan", "b")
vmSwitch(branch)
seen = [exec("cat plan").stdout, readFile("/workspace/plan")]
restored = vmRestore(commit)
seen.append(readFile("/workspace/plan"))
vmSwitch(home)
seen.append(readFile("/workspace/plan"))
FINAL(seen)
"""
"""A cell that goes through copies of its machine, and hands in what it saw: a, a, a, b."""
