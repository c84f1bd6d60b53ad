"""What every adapter does alike: take the jobs from stdin, and tell what came of each.

Runs in an engine's own environment, so it needs nothing but the standard library.
"""

from __future__ import annotations

import json
import re
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

MODEL = "scripted"
"""The name of the model, which the scripted server does not look at."""

_PEAK = re.compile(r"VmHWM:\s+(\d+) kB")


@dataclass(frozen=True)
class Job:
    """One run that an engine is to perform; what is None is left to the engine's defaults."""

    root_url: str
    sub_url: str
    input_file: str
    """Becomes the input `context`, a text; the output is `answer`, a text too."""
    max_iterations: int
    max_sub_calls: int
    run_seconds: float | None
    cell_seconds: float | None
    log_directory: str | None
    """Where it is to keep a log of the run, if it is to be asked for one."""
    interpreter: str | None
    """Which of an engine's interpreters, where it has several."""


@dataclass
class Outcome:
    """What came of a job; times on the monotonic clock, in seconds."""

    started: float
    ended: float = 0
    answer: str | None = None
    error: str | None = None
    memory_bytes: int = 0
    """The peak of the engine's own process since it began."""
    log: str | None = None
    """The directory of the engine's log of the run, if it kept one."""
    log_bytes: int = 0


class Unsupported(Exception):
    """The engine has no such thing; its text says which."""


def jobs() -> Iterator[Job]:
    """The jobs, in their order."""
    for fields in json.load(sys.stdin):
        yield Job(**fields)


@contextmanager
def timed_outcome() -> Generator[Outcome]:
    """Time a job, and append its outcome to the file that this process was started with."""
    outcome = Outcome(time.monotonic())
    try:
        yield outcome
    except Exception as error:  # noqa: BLE001 - whatever an engine raises is a finding
        kind = "" if isinstance(error, Unsupported) else f"{type(error).__name__}: "
        outcome.error = f"{kind}{error}"
    outcome.ended = time.monotonic()
    outcome.memory_bytes = _peak()
    if outcome.log:
        files = [path for path in Path(outcome.log).rglob("*") if path.is_file()]
        outcome.log_bytes = sum(path.stat().st_size for path in files)
    with Path(sys.argv[1]).open("a") as file:
        file.write(json.dumps(asdict(outcome)) + "\n")


def _peak() -> int:
    # Not getrusage, whose figure begins with the size of the process that started this one.
    found = _PEAK.search(Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0
