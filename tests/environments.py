"""Environments with packages of others, which would not fit into ours."""

from __future__ import annotations

import subprocess
import venv
from pathlib import Path

# Not below the tests: what looks for snapshots there would read all of it.
ENVIRONMENTS = Path(__file__).parents[1] / ".environments"


def scripts_of(package: str) -> Path:
    """The directory of the programs of a package and of its Python; installed if it is missing."""
    directory = ENVIRONMENTS / package
    if not (directory / "ready").exists():
        venv.create(directory, clear=True, with_pip=True)
        subprocess.run([directory / "bin/pip", "install", "--quiet", package], check=True)
        (directory / "ready").touch()
    return directory / "bin"
