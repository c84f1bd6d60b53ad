"""The examples run as they stand, with a scripted model."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(tmp_path: Path, example: str, *arguments: str, code: str = "") -> str:
    """What an example prints; `code` is the only cell that its model writes."""
    script = tmp_path / "script.txt"
    script.write_text(f'--- reply when="^Is"\nyes\n--- reply\n```python\n{code}\n```\n')
    done = subprocess.run(
        [sys.executable, EXAMPLES / example, *arguments],
        env=os.environ
        | {
            "VERS_RLM_MODEL": f"scripted:{script}",
            "VERS_RLM_BACKEND": "bubblewrap",
            "VERS_RLM_STATE_DIR": str(tmp_path / "state"),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_question_about_a_file_is_answered(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    log.write_text("ok\nno space left\n")
    code = "FINAL(answer=question + ' disk', evidence=log.splitlines()[1:])"
    printed = run(tmp_path, "ask_about_a_file.py", str(log), "What?", code=code)
    outputs, _, cost = printed.rstrip().rpartition("\n")
    assert json.loads(outputs) == {"answer": "What? disk", "evidence": ["no space left"]}
    assert cost == "1 steps, 0 tokens, 0.0 USD"


def test_a_run_is_watched(tmp_path: Path) -> None:
    code = 'print("counting")\nFINAL(answer=llmQuery("Is it so? " + question))'
    printed = run(tmp_path, "watch_a_run.py", "Well?", code=code)
    assert printed.splitlines() == [
        "counting",
        "[asks a sub-model: Is it so? Well?]",
        "[step 1: 0 tokens]",
        "yes",
    ]


def test_the_better_of_two_branches_is_kept(tmp_path: Path) -> None:
    printed = run(tmp_path, "try_on_branches.py")
    smallest, sizes, commit = re.fullmatch(
        r"(\d+) bytes is the smallest of \[(.+)\]; kept in (\S+)\n", printed
    ).groups()  # pyright: ignore[reportOptionalMemberAccess]
    assert int(smallest) == min(map(int, sizes.split(", ")))
    assert commit


def test_a_script_needs_no_async(tmp_path: Path) -> None:
    assert run(tmp_path, "from_a_notebook.py", code="FINAL(answer=6 * 7)") == "42\n"
