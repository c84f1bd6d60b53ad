"""The same tests once more, as a user who is nobody in particular."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ORDINARY_USER = 54321
"""An id without an account, a home or any right."""

PLACES = [Path(__file__).parents[1] / name for name in ("bubblewrap", "escapes", "model")]
CHOSEN = (
    "isolation or snapshots or limits or lifecycle or escapes or "
    "((file_trees or busy) and not fake)"
)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests already run as an ordinary user")
@pytest.mark.timeout(900)
def test_all_holds_for_an_ordinary_user() -> None:
    with tempfile.TemporaryDirectory() as home:
        os.chown(home, ORDINARY_USER, ORDINARY_USER)
        options = [
            "-q",
            "--tb=short",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:inline_snapshot",
            f"--basetemp={home}/t",
        ]
        options += [f"--ignore={__file__}", "-k", CHOSEN]
        result = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *PLACES],
            cwd=Path(__file__).parents[3],
            env={
                "HOME": home,
                "PATH": os.environ["PATH"],
                "PYTHONDONTWRITEBYTECODE": "1",
                "BUBBLEWRAP_TESTS_AS": str(ORDINARY_USER),
            },
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
    assert result.returncode == 0, result.stdout
