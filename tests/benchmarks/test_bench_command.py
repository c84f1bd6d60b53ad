"""The command behind `make bench`, on the smallest thing that it measures."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_quick_pass_lets_our_engine_run_against_the_scripted_server_and_prints_a_table() -> None:
    argv = [sys.executable, "-m", "benchmarks", "engine", "--quick", "--only", "task"]
    kept = results()

    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)

    rows = dict(re.findall(r"^\| (\w[^|]*?) \|[^|]*\| ([\d.,]+) \|", done.stdout, re.MULTILINE))
    sent, repeated, new = (float(figure.replace(",", "")) for figure in rows.values())
    assert sent > 10_000, done.stdout
    assert repeated > 80, "a conversation that is only appended to begins with the one before"
    assert new < sent
    assert results() == kept, "one round says too little to be kept"


def results() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (ROOT / "benchmarks" / "results").glob("*")}
