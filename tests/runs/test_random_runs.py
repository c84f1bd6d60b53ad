"""Whatever a tree of conversations does, and wherever it is cut off: as a plain model says.

``VERS_RLM_TEST_SEEDS`` says how many trees are grown: a dozen by default, of which a few on
bubblewrap, too.
"""

from __future__ import annotations

import os
from random import Random
from typing import TYPE_CHECKING

import pytest
from gardens import MAX_DEPTH, SIGNATURE, Garden
from lab import Lab, Speaker

from vers_rlm_mcp import rlm
from vers_rlm_mcp.runs import RunResult, RunSummary, events, render_lineage, run_lineage, summaries
from vers_rlm_mcp.store import Journals
from vers_rlm_mcp.values import Completion, Message, Usage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vers_rlm_mcp.store import MachineRecord

pytestmark = pytest.mark.slow

SEEDS = int(os.environ.get("VERS_RLM_TEST_SEEDS", "12"))
REAL_SEEDS = max(2, SEEDS // 10)
FIRST_CUT, LAST_CUT = 3, 150
"""Between which events a run is cut off: the journal must tell of its task, which comes second."""


class CutOff(Exception):
    """Stands for whatever ends a process."""


class Walk:
    """Grows one tree, cuts it off now and then, and looks after each attempt at what there is."""

    def __init__(self, lab: Lab, seed: int) -> None:
        self._lab = lab
        self._garden = Garden(seed)
        self._random = Random(seed)
        self._model = self._garden.model()
        self._sub_model = Speaker(self._delete, "deleting:test")
        self._events = 0
        self._cut = 0
        self._names: dict[str, str] = {}

    async def take(self) -> None:
        """Attempts that are cut off, and one that is not."""
        cuts = [
            self._random.randint(FIRST_CUT, LAST_CUT) for _ in range(self._random.randint(0, 3))
        ]
        for cut in [*cuts, 0]:
            on_record = self._on_record()
            asked = len(self._model.asked)
            result = await self._attempt(cut)
            again = {rlm.fingerprint(each, self._model.name) for each in self._model.asked[asked:]}
            assert not again & on_record, "nothing on record is asked for again"
            assert await self._lab.machines() == []
            assert [each for each in self._live() if each.machine_id or not each.abandoned_at] == []
            self._look()
            if result:
                assert result.status == "finished", result
                assert result.outputs == self._garden.expected["own"]

    async def _attempt(self, cut: int) -> RunResult | None:
        self._events, self._cut = 0, cut
        ids = self._lab.journal_ids()
        settings = {"checkpoints": "step"}
        try:
            if not ids:
                return await self._lab.run(
                    SIGNATURE,
                    self._model,
                    sub_model=self._sub_model,
                    settings=settings,
                    on_event=self._watch,
                    max_depth=MAX_DEPTH,
                    seconds=90,
                )
            return await self._lab.resume(
                ids[0],
                self._model,
                sub_model=self._sub_model,
                settings=settings,
                on_event=self._watch,
                step=self._step(),
            )
        except CutOff:
            return None
        except BaseExceptionGroup as group:
            if group.split(CutOff)[1]:
                raise
            return None

    def _step(self) -> int | None:
        """From where to go on: sometimes the last checkpoint, sometimes any."""
        (about,) = self._summaries()
        if about.checkpoints and (about.state == "finished" or self._random.random() < 0.5):
            return self._random.choice(about.checkpoints)
        return None

    def _watch(self, event: rlm.Event) -> None:
        self._events += 1
        inner = event.event if isinstance(event, events.InChild) else event
        if isinstance(inner, events.ChildStarted):
            self._names[inner.child] = inner.about.rpartition(" ")[2].rstrip(".")
        elif isinstance(inner, events.ChildFinished):
            expected = self._garden.expected[self._names[inner.child]]
            assert inner.outputs == (expected or {}), inner
        if self._events % 10 == 0:
            self._look()
        if self._events == self._cut:
            raise CutOff

    def _look(self) -> None:
        """The journal can be read, and the tree of the run be drawn, at any time."""
        for about in self._summaries():
            assert self._lab.journal(about.id)
            _, nodes = run_lineage(Journals(self._lab.settings.state_dir).of(about.id))
            assert len(list(render_lineage(nodes))) == len(nodes)

    def _live(self) -> Sequence[MachineRecord]:
        """What the ledger has: also what was asked for, never came, and may still come."""
        return self._lab.fleet.ledger.live(self._lab.fleet.backend.name)

    def _summaries(self) -> Sequence[RunSummary]:
        return summaries(Journals(self._lab.settings.state_dir))

    def _on_record(self) -> set[str]:
        events = [event for id_ in self._lab.journal_ids() for event in self._lab.journal(id_)]
        return {event["request"] for event in events if event["event"] == "model_replied"}

    async def _delete(self, messages: Sequence[Message]) -> Completion:
        await self._lab.fleet.backend.delete(messages[-1].content.split()[1])
        return Completion("Gone.", Usage())


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_a_random_tree_does_what_its_model_says(lab: Lab, seed: int):
    await Walk(lab, seed).take()


@pytest.mark.parametrize("seed", range(REAL_SEEDS))
async def test_a_random_tree_does_so_in_real_machines(real: Lab, seed: int):
    await Walk(real, seed).take()
