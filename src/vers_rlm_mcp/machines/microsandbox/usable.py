"""Checks whether machines boot here by booting one, once per boot of this computer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from ..base import Usable

PACKAGE: Final = "microsandbox"

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

PROBE_SECONDS: Final = 60.0
"""For the trial, which also limits its steps: loading the package, booting and cleaning up."""


def usable(state_dir: Path) -> Usable:
    """Whether the package is installed and a machine boots; the latter is cached.

    The trial runs in a separate process, which ends if the package's library panics.
    """
    try:
        installed = version(PACKAGE)
    except PackageNotFoundError:
        return Usable(False, f"the package {PACKAGE} is not installed")
    path = _memory(state_dir)
    key = f"{installed} {_boot_id()}"
    with suppress(OSError, ValueError, KeyError, TypeError):  # not tried yet, or not readable
        remembered = json.loads(path.read_text())
        if remembered.pop("key") == key:
            return Usable(**remembered)
    found = _try(state_dir)
    with suppress(OSError):  # then it is tried again the next time
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{uuid.uuid4().hex}")
        unfinished.write_text(json.dumps({"key": key, **asdict(found)}))
        unfinished.replace(path)
    return found


def forget(state_dir: Path) -> None:
    """Forget whether a machine boots: what it needs may have been installed since."""
    with suppress(OSError):
        _memory(state_dir).unlink()


def _memory(state_dir: Path) -> Path:
    return state_dir / PACKAGE / "usable.json"


def _try(state_dir: Path) -> Usable:
    argv = [sys.executable, "-m", f"{__package__}.probe", str(state_dir)]
    try:
        result = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return Usable(False, f"trying it took longer than {PROBE_SECONDS:g} s")
    if result.returncode == 0:
        return Usable(True, "a machine of it boots here")
    words = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
    return Usable(False, f"a microsandbox machine does not boot here ({words[-1]})")


def _boot_id() -> str:
    try:
        return BOOT_ID.read_text().strip()
    except OSError:  # not Linux: try again with a new kernel or package
        return os.uname().version
