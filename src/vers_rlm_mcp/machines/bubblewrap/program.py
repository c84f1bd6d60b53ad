"""The program that runs as PID 1: our guest modules, compiled for the host's Python."""

from __future__ import annotations

import shutil
import subprocess
import sys
from functools import cache as cached
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from . import guest

if TYPE_CHECKING:
    from .cache import Cache

COMPILE_SECONDS: Final = 60.0
"""How long starting Python and compiling a few modules may take on a loaded host."""


@cached
def interpreter() -> Path:
    """The host's Python that runs PID 1: the system's, as every user can reach that, else ours."""
    for path in (Path("/usr/bin/python3"), Path("/usr/local/bin/python3")):
        if path.exists() and _is_recent(path):
            return path.resolve()
    return Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}")


def compiled_guest(cache: Cache) -> Path:
    """A directory with the guest modules, compiled once. Raises OSError or SubprocessError.

    To compile them at each boot would take longer than all the rest of it.
    """
    sources = sorted(Path(guest.__file__).parent.glob("*.py"))
    info = interpreter().stat()
    content = [source.read_bytes() for source in sources]
    about = (str(interpreter()), info.st_size, info.st_mtime_ns, content)
    return cache.provide("guest", None, about, partial(_compile, sources))


def _compile(sources: list[Path], directory: Path) -> None:
    for source in sources:
        shutil.copyfile(source, directory / source.name)
    _python("-m", "compileall", "-q", "-b", str(directory))
    for source in sources:
        (directory / source.name).unlink()


def _is_recent(path: Path) -> bool:
    command = [path, "-I", "-S", "-c", "import sys; sys.exit(sys.version_info < (3, 8))"]
    return subprocess.run(command, check=False, timeout=COMPILE_SECONDS).returncode == 0


def _python(*arguments: str) -> None:
    command = [interpreter(), "-I", "-S", *arguments]
    subprocess.run(command, check=True, timeout=COMPILE_SECONDS, stdin=subprocess.DEVNULL)
