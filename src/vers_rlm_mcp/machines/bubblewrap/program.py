"""The program that runs as PID 1: our guest modules, compiled for the host's Python."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from . import guest

if TYPE_CHECKING:
    from .store import Store

COMPILE_SECONDS: Final = 60.0
"""How long starting Python and compiling a few modules may take on a loaded host."""


@cache
def interpreter() -> Path:
    """The host's Python that runs PID 1: the system's, as every user can reach that, else ours."""
    for path in (Path("/usr/bin/python3"), Path("/usr/local/bin/python3")):
        if path.exists() and _is_recent(path):
            return path.resolve()
    return Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}")


def compiled_guest(store: Store) -> Path:
    """A directory with the guest modules, compiled once. Raises OSError or SubprocessError.

    To compile them at each boot would take longer than all the rest of it.
    """
    sources = sorted(Path(guest.__file__).parent.glob("*.py"))
    place = store.bases / f"guest-{_digest(sources)}"
    if not place.is_dir():
        making = place.with_name(f".{place.name}.{os.getpid()}")
        making.mkdir(exist_ok=True)
        for source in sources:
            shutil.copyfile(source, making / source.name)
        _python("-m", "compileall", "-q", "-b", str(making))
        for source in sources:
            (making / source.name).unlink()
        try:
            making.rename(place)
        except OSError:  # Another server was faster.
            shutil.rmtree(making, ignore_errors=True)
    return place


def _digest(sources: list[Path]) -> str:
    """Tells apart our versions and the interpreter's."""
    info = interpreter().stat()
    digest = hashlib.sha256(f"{interpreter()} {info.st_size} {info.st_mtime_ns}".encode())
    for source in sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _is_recent(path: Path) -> bool:
    command = [path, "-I", "-S", "-c", "import sys; sys.exit(sys.version_info < (3, 8))"]
    return subprocess.run(command, check=False, timeout=COMPILE_SECONDS).returncode == 0


def _python(*arguments: str) -> None:
    command = [interpreter(), "-I", "-S", *arguments]
    subprocess.run(command, check=True, timeout=COMPILE_SECONDS, stdin=subprocess.DEVNULL)
