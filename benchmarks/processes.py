"""Runs an engine in a separate process, and finds out what became of its jobs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .scenarios import Run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PROCESS_SECONDS = 240
"""What one process may take for all of its jobs; the slowest peer needs half of it."""

WATCH_SECONDS = 0.1
"""Between two looks at the memory of an engine's processes."""

_PAGE = os.sysconf("SC_PAGE_SIZE")
_PARENT = re.compile(r"\) \S (\d+)")


def perform(
    argv: Sequence[str],
    jobs: Sequence[Mapping[str, Any]],
    environment: Mapping[str, str],
    *,
    watch_memory: bool,
) -> Sequence[Run]:
    """Start an adapter, give it its jobs, and wait for it: what it says of each.

    The runs' `heard` is for the caller to fill in.
    """
    with tempfile.TemporaryDirectory(prefix="vers-rlm-bench-") as name:
        directory = Path(name)
        outcomes, output, todo = (directory / name for name in ("outcomes", "output", "jobs"))
        todo.write_text(json.dumps(jobs))
        with todo.open() as stdin, output.open("w") as stdout:
            spawned = time.monotonic()
            process = subprocess.Popen(
                [*argv, str(outcomes)],
                stdin=stdin,
                stdout=stdout,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=directory,
                start_new_session=True,
            )
            memory = _wait(process, spawned + PROCESS_SECONDS, watch=watch_memory)
        lines = outcomes.read_text().splitlines() if outcomes.exists() else []
        runs = [Run(spawned, **json.loads(line), all_memory_bytes=memory) for line in lines]
        lost = Run(spawned, spawned, time.monotonic(), error=_ending(process, output))
        return [*runs, *[lost] * (len(jobs) - len(runs))]


def _ending(process: subprocess.Popen[bytes], output: Path) -> str:
    if process.returncode == -signal.SIGKILL:
        return f"was not done after {PROCESS_SECONDS} s"
    last = output.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
    return f"its process ended with {process.returncode}: {last[0]}"


def _wait(process: subprocess.Popen[bytes], deadline: float, *, watch: bool) -> int:
    """Wait for a process, and end it at the deadline.

    Returns the peak of the memory of it and all its descendants, if watched.
    """
    peak = 0
    try:
        while watch and process.poll() is None and time.monotonic() < deadline:
            peak = max(peak, _memory_of_tree(process.pid))
            time.sleep(WATCH_SECONDS)
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0, deadline - time.monotonic()))
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return peak


def _memory_of_tree(root: int) -> int:
    """The sum of the resident sets of a process and its descendants, in bytes."""
    sizes = (read(Path("/proc", str(pid), "statm")).split() for pid in tree_of(root))
    return sum(int(size[1]) * _PAGE for size in sizes if size)


def tree_of(root: int) -> list[int]:
    """A process and its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (parent := _PARENT.search(read(entry / "stat"))):
            children.setdefault(int(parent[1]), []).append(int(entry.name))
    tree = [root]
    for pid in tree:
        tree += children.get(pid, [])
    return tree


def read(path: Path) -> str:
    """A file of a process; empty when that has ended."""
    try:
        return path.read_text()
    except OSError:
        return ""
