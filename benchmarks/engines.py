"""The engines, side by side: each in its own environment, in turn (A B C A B C …).

Anything that disturbs this computer disturbs all of them alike.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import peers
from .model_server import ModelServer, model_server
from .processes import perform
from .scenarios import DONE, SCENARIOS, SUB_CALL_SECONDS, Job, Run, Scenario
from .tables import NoFigure, Section, computer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

SLOW_SECONDS = 30
"""An engine whose process takes longer does a scenario once, not several times."""

_ADAPTERS = Path(__file__).parent / "adapters"
_INPUT_LINE = "One line of the input among a great many others.\n" + "-" * 50 + "\n"


@dataclass(frozen=True)
class Engine:
    """An engine, and how a model has to write for it."""

    name: str
    adapter: str
    python: Callable[[], Path]
    """May install it. Raises `PeerMissing`."""
    reply: str
    """What a model writes to have CODE run."""
    finish: str
    """The code that hands in ANSWER."""
    interpreter: str | None = None
    environment: Callable[[], Mapping[str, str]] = field(default=dict[str, str])


OURS = Engine(
    "vers-rlm-mcp",
    "vers.py",
    lambda: Path(sys.executable),
    "Let me see.\n\n```python\nCODE\n```",
    "FINAL(answer=ANSWER)",
)
_RLMS = Engine(
    "rlms, local",
    "rlms.py",
    lambda: peers.python_of("rlms"),
    "Let me see.\n\n```repl\nCODE\n```",
    'answer["content"] = ANSWER\nanswer["ready"] = True',
)
_DSPY = Engine(
    "dspy.RLM, local",
    "dspy_rlm.py",
    lambda: peers.python_of("dspy"),
    "[[ ## reasoning ## ]]\nLet me see.\n\n"
    "[[ ## code ## ]]\n```python\nCODE\n```\n\n[[ ## completed ## ]]",
    "SUBMIT(answer=ANSWER)",
    "local",
)
_DSPY_DENO = replace(
    _DSPY, name="dspy.RLM, Deno", interpreter="deno", environment=peers.deno_environment
)
PEERS = (_RLMS, _DSPY, _DSPY_DENO)

NOTES = [
    "Every engine is a process of its own, in its own virtual environment; the model is a server "
    "on loopback that answers at once, and whose time is not counted.",
    f"{', '.join(each for wanted in peers.REQUIREMENTS.values() for each in wanted)}, with their "
    "dependencies as of the day.",
    "vers-rlm-mcp runs the model's code in a bubblewrap machine, Deno in WebAssembly; rlms runs it "
    "in its own process and dspy's LocalInterpreter in another, with all that the user may do.",
    "Changed from the defaults: for all, the limits on iterations and sub-calls, which are lower "
    "than what is measured; for dspy, no answers from its cache on disk; for rlms, an endpoint for "
    "sub-calls (`other_backends`), and a log where its size is measured.",
    "vers-rlm-mcp is given the input as a file, and its own process does not hold it; the peers "
    "take a text, read from the same file. Memory of all processes is the sum of their resident "
    "sets: what they share is counted more than once.",
    f"An engine whose process takes longer than {SLOW_SECONDS} s does its scenario once.",
]
_STAND_IN = (
    "dspy's runner for Deno imports `readLines` from deno.land, which could not be reached: a "
    "stand-in takes its place, in time linear in the length of a line."
)


def measure(
    engines: Sequence[Engine], *, rounds: int | None = None, only: Sequence[str] = ()
) -> Section:
    """Let every engine do every scenario.

    Args:
        engines: Ours comes first.
        rounds: Instead of each scenario's own number.
        only: Names of scenarios, to leave out the others.
    """
    section = Section("Engines", [engine.name for engine in engines], computer(), notes=[*NOTES])
    scenarios = [each for each in SCENARIOS if not only or each.name in only]
    with model_server() as server, tempfile.TemporaryDirectory(prefix="vers-rlm-bench-") as home:
        lab = _Lab(server, Path(home))
        ready = [each for each in engines if _is_ready(each, lab, section, scenarios)]
        for scenario in scenarios:
            seconds: dict[str, float] = defaultdict(float)
            for number in range(rounds or scenario.rounds):
                for engine in (each for each in ready if seconds[each.name] < SLOW_SECONDS):
                    started = time.monotonic()
                    _record(section, scenario, engine, lab.perform(engine, scenario))
                    seconds[engine.name] = time.monotonic() - started
                    name = f"{scenario.name}, round {number + 1}, {engine.name}"
                    print(f"{name}: {seconds[engine.name]:.1f} s", file=sys.stderr)
    return section


def _is_ready(engine: Engine, lab: _Lab, section: Section, scenarios: Sequence[Scenario]) -> bool:
    """Install an engine and let it run once, uncounted: its files are compiled and cached then."""
    try:
        if "IMPORT_MAP" in engine.environment():
            section.notes.append(_STAND_IN)
        (run,) = lab.perform(engine, Scenario("warm-up", (Job(),), (), cold=True))
        run.done()
    except (peers.PeerMissing, NoFigure) as error:
        for reading in (each for scenario in scenarios for each in scenario.readings):
            cell = section.cell(reading.what, reading.unit, engine.name, reading.goal)
            cell.remark = f"{engine.name} could not be run here: {error}"
        return False
    return True


def _record(section: Section, scenario: Scenario, engine: Engine, runs: Sequence[Run]) -> None:
    for reading in scenario.readings:
        cell = section.cell(reading.what, reading.unit, engine.name, reading.goal)
        try:
            cell.values.append(reading.read(runs))
        except NoFigure as error:
            cell.remark = f"{engine.name}: {error}"


@dataclass(frozen=True)
class _Lab:
    server: ModelServer
    home: Path
    """The home directory of every engine's process: caches and state last as long as this."""

    def perform(self, engine: Engine, scenario: Scenario) -> Sequence[Run]:
        """One process of an engine: what came of the scenario's jobs."""
        planned = scenario.jobs if scenario.cold else (Job(), *scenario.jobs)
        sessions = [self._open(engine, job) for job in planned]
        runs = perform(
            [str(engine.python()), str(_ADAPTERS / engine.adapter)],
            [
                self._described(engine, job, session)
                for job, session in zip(planned, sessions, strict=True)
            ],
            {"PATH": os.environ["PATH"], "HOME": str(self.home), **engine.environment()},
            watch_memory=scenario.watch_memory,
        )
        heard = map(self.server.close, sessions)
        done = [replace(run, heard=each) for run, each in zip(runs, heard, strict=True)]
        return done[-len(scenario.jobs) :]

    def _open(self, engine: Engine, job: Job) -> str:
        last = engine.finish.replace("ANSWER", job.answer)
        replies = [engine.reply.replace("CODE", code) for code in (*job.steps, last)]
        return self.server.open(replies, DONE, SUB_CALL_SECONDS)

    def _described(self, engine: Engine, job: Job, session: str) -> dict[str, Any]:
        """A job as its adapter reads it."""
        return {
            "root_url": self.server.url(session, "root"),
            "sub_url": self.server.url(session, "sub"),
            "input_file": str(self._input(job.input_bytes)),
            "max_iterations": len(job.steps) + 1,
            "max_sub_calls": job.sub_calls or 1,
            "run_seconds": job.run_seconds,
            "cell_seconds": job.cell_seconds,
            "log_directory": str(self.home / "logs" / session) if job.log else None,
            "interpreter": engine.interpreter,
        }

    def _input(self, size: int) -> Path:
        path = self.home / f"input{size}.txt"
        if not path.exists():
            path.write_text(_INPUT_LINE * (size // len(_INPUT_LINE)))
        return path
