"""The program that runs as PID 1: our guest modules, for the host's Python."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Final

from ..code import guest_code

START_SECONDS: Final = 60.0
"""How long starting Python may take on a loaded host."""

_SHOW_MAGIC: Final = """\
import sys
from _frozen_importlib_external import MAGIC_NUMBER
sys.exit(sys.version_info < (3, 8) or print(MAGIC_NUMBER.hex()))
"""


@cache
def interpreter() -> Path:
    """The host's Python that runs PID 1: the system's, which every user can reach, else ours."""
    for path in (Path("/usr/bin/python3"), Path("/usr/local/bin/python3")):
        if path.exists() and _magic(path):
            return path.resolve()
    return Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}")


def init_code() -> bytes:
    """The archive with PID 1, compiled for its Python. Raises OSError or SubprocessError.

    Compiling it at each boot would take longer than the rest of the boot.
    """
    python = interpreter()
    ours = _magic(python) == importlib.util.MAGIC_NUMBER.hex()
    return guest_code("daemon", "bubblewrap", python=None if ours else python, local=True)


@cache
def _magic(python: Path) -> str:
    """The magic number of a Python's bytecode; empty if it is too old."""
    result = subprocess.run(
        [python, "-I", "-S", "-c", _SHOW_MAGIC],
        stdout=subprocess.PIPE,
        check=False,
        timeout=START_SECONDS,
        text=True,
    )
    return "" if result.returncode else result.stdout.strip()
