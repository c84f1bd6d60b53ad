"""What the engines are given to do, alike for all, and what is read off what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from .model_server import NOTHING, Heard
from .tables import TIMES, NoFigure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MIB = 1024 * 1024

TURNS = 100
TASK_STEPS = 10
BATCH = 256
SUB_CALL_SECONDS = 0.05
INPUT_BYTES = 100_000_000
OUTPUT_BYTES = 50_000_000
LIMIT_SECONDS = 1.0
BUSY_SECONDS = 5
"""How long a cell runs that is to be stopped after `LIMIT_SECONDS`: it ends, since some peers look
at their limit only then."""

DONE = "done"


@dataclass(frozen=True)
class Job:
    """One run of an engine: what its model writes, step by step, and its limits.

    The code is what all engines understand; a last step hands in the answer.
    """

    steps: tuple[str, ...] = ()
    answer: str = f'"{DONE}"'
    """A Python expression."""
    input_bytes: int = 100
    sub_calls: int = 0
    run_seconds: float | None = None
    cell_seconds: float | None = None
    log: bool = False


@dataclass(frozen=True)
class Run:
    """What came of a job; times on the monotonic clock, in seconds."""

    spawned: float
    """When its process was started."""
    started: float
    ended: float
    answer: str | None = None
    error: str | None = None
    memory_bytes: int = 0
    """The peak of the engine's own process, since it began."""
    all_memory_bytes: int = 0
    """The peak of all its processes together, if that was watched."""
    log: str | None = None
    log_bytes: int = 0
    heard: Heard = NOTHING
    """What its model was asked."""

    @property
    def seconds(self) -> float:
        """From the call to its answer."""
        return self.ended - self.started

    @property
    def set_up(self) -> float:
        """From the call to the first request."""
        return self.heard.asked[0] - self.started

    @property
    def turns(self) -> list[float]:
        """From each reply of the model to the next request; from the last to the end."""
        after = [*self.heard.asked[1:], self.ended]
        return [end - start for start, end in zip(self.heard.answered, after, strict=True)]

    def done(self) -> Run:
        """This run, if it went as planned. Raises `NoFigure` with the reason otherwise."""
        if self.error:
            raise NoFigure(self.error)
        if self.answer != DONE:
            raise NoFigure(f"ended with {self.answer!r}")
        return self


@dataclass(frozen=True)
class Reading:
    """One figure of a scenario."""

    what: str
    unit: str
    read: Callable[[Sequence[Run]], float]
    """From the runs of all jobs. Raises `NoFigure`."""
    goal: float | None = None


@dataclass(frozen=True)
class Scenario:
    """Jobs for one process of an engine, one after the other."""

    name: str
    jobs: tuple[Job, ...]
    readings: tuple[Reading, ...]
    rounds: int = 3
    cold: bool = False
    """Count the first run of a process, too; else one of one step goes before all jobs."""
    watch_memory: bool = False
    """Look at the memory of all processes while they run, which takes some time itself."""


def _steps(count: int, code: str) -> tuple[str, ...]:
    return tuple(code.replace("NUMBER", str(number)) for number in range(count))


def _batch(name: str) -> str:
    return f'{name} = llm_query_batched([f"Question {{i}}" for i in range({BATCH})])'


PRINT_500 = 'print("NUMBER: " + "some output " * 41)'
_PRINT_1000 = 'print("NUMBER: " + "some output " * 83)'
_BUSY = f"import time\nend = time.time() + {BUSY_SECONDS}\nwhile time.time() < end: pass"
_ALL_ANSWERED = (
    f'"{DONE}" if NAME == ["{DONE}"] * {BATCH} else '
    f"f\"{{[a == '{DONE}' for a in NAME].count(False)}} of {BATCH} failed: \" "
    f'+ [str(a) for a in NAME if a != "{DONE}"][0][:300]'
)


def _more(runs: Sequence[Run]) -> float:
    """How much longer an iteration takes with the large input; the first may prepare something."""
    small, large = (run.done().turns[1] for run in runs)
    return (large - small) * 1000


def _log_bytes(run: Run) -> int:
    if run.done().log is None:
        raise NoFigure("keeps no log on disk")
    return run.log_bytes


def _prefix(heard: Heard) -> float:
    """How much of a request, on average, a prompt cache could have read."""
    return heard.repeated / (heard.sent - heard.first)


def _over(run: Run, seconds: Callable[[Run], float]) -> float:
    """By how much a limit was passed; a run that the limit ends may fail."""
    if not run.heard.asked:
        raise NoFigure(run.error or "asked no model")
    return (seconds(run) - LIMIT_SECONDS) * 1000


SCENARIOS = (
    Scenario(
        "fixed",
        (Job(), Job()),
        (
            Reading(
                "a run of one step, in a new process",
                "s",
                lambda runs: runs[0].done().ended - runs[0].spawned,
            ),
            Reading(
                "a run of one step, the second of its process",
                "s",
                lambda runs: runs[1].done().seconds,
            ),
        ),
        rounds=5,
        cold=True,
    ),
    Scenario(
        "turns",
        (Job(_steps(TURNS, PRINT_500)),),
        (
            Reading(
                f"an iteration, the first ten of {TURNS}",
                "ms",
                lambda runs: median(runs[0].done().turns[:10]) * 1000,
                goal=2,
            ),
            Reading(
                f"an iteration, the last ten of {TURNS}",
                "ms",
                lambda runs: median(runs[0].done().turns[-11:-1]) * 1000,
                goal=2,
            ),
        ),
    ),
    Scenario(
        "input",
        tuple(Job(_steps(2, "print(len(context))"), input_bytes=n) for n in (100, INPUT_BYTES)),
        (
            Reading(
                "the first request, later with 100 MB of input",
                "s",
                lambda runs: runs[1].done().set_up - runs[0].done().set_up,
            ),
            Reading("an iteration, longer with 100 MB of input", "ms", _more, goal=5),
            Reading(
                "peak memory of the engine's process, 100 MB of input",
                "MiB",
                lambda runs: runs[1].done().memory_bytes / MIB,
                goal=100,
            ),
            Reading(
                "peak memory of all its processes, 100 MB of input",
                "MiB",
                lambda runs: runs[1].done().all_memory_bytes / MIB,
            ),
        ),
        watch_memory=True,
    ),
    Scenario(
        "batch",
        tuple(
            Job((_batch("first"), *more), _ALL_ANSWERED.replace("NAME", name), sub_calls=2 * BATCH)
            for name, more in (("first", ()), ("second", (_batch("second"),)))
        ),
        (
            Reading(
                f"{BATCH} sub-calls of 50 ms",
                "s",
                lambda runs: runs[0].done().turns[0],
                goal=0.55,
            ),
            Reading(f"{BATCH} more in the same run", "s", lambda runs: runs[1].done().turns[1]),
        ),
    ),
    Scenario(
        "output",
        (Job(_steps(3, f'print(("x" * 99 + "\\n") * {OUTPUT_BYTES // 100})')),),
        (
            Reading(
                "an iteration that prints 50 MB",
                "s",
                lambda runs: median(runs[0].done().turns[:-1]),
            ),
            Reading(
                "peak memory of the engine's process, 50 MB printed",
                "MiB",
                lambda runs: runs[0].done().memory_bytes / MIB,
            ),
        ),
    ),
    Scenario(
        "log",
        tuple(Job(_steps(turns, PRINT_500), log=True) for turns in (TURNS, TURNS // 2)),
        (
            Reading(f"the log of {TURNS} turns", "KiB", lambda runs: _log_bytes(runs[0]) / 1024),
            Reading(
                f"the log of {TURNS} turns against {TURNS // 2}",
                TIMES,
                lambda runs: _log_bytes(runs[0]) / _log_bytes(runs[1]),
                goal=2.1,
            ),
        ),
        rounds=1,
    ),
    Scenario(
        "limits",
        (
            Job((_BUSY,), run_seconds=LIMIT_SECONDS),
            Job((_BUSY,), cell_seconds=LIMIT_SECONDS),
        ),
        (
            Reading(
                f"a run over its limit of {LIMIT_SECONDS:g} s, in the midst of a cell",
                "ms",
                lambda runs: _over(runs[0], lambda run: run.seconds),
                goal=100,
            ),
            Reading(
                f"a cell over its limit of {LIMIT_SECONDS:g} s",
                "ms",
                lambda runs: _over(runs[1], lambda run: run.turns[0]),
                goal=100,
            ),
        ),
    ),
    Scenario(
        "task",
        (Job(_steps(TASK_STEPS, _PRINT_1000)),),
        (
            Reading(
                f"sent to the model in {TASK_STEPS} steps of 1,000 characters of output",
                "tokens (bytes / 4)",
                lambda runs: runs[0].done().heard.sent / 4,
            ),
            Reading(
                "of that, after the first request, a prefix of the request before",
                "%",
                lambda runs: 100 * _prefix(runs[0].done().heard),
            ),
            Reading(
                "of that, new",
                "tokens (bytes / 4)",
                lambda runs: (runs[0].done().heard.sent - runs[0].heard.repeated) / 4,
            ),
        ),
        rounds=1,
    ),
)
