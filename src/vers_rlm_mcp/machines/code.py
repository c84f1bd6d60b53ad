"""Our code for machines: modules packed into an archive, which any Python there can run.

An archive is a zip with bytecode and mostly sources. A program whose life ends with its connection
gets it at the beginning of its input (`loader`); for the kernel, which lives on, it is a file.
"""

from __future__ import annotations

import io
import marshal
import subprocess
import zipfile
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Final

from . import bytecode

if TYPE_CHECKING:
    from collections.abc import Mapping
    from importlib.resources.abc import Traversable
    from pathlib import Path

PACKAGE: Final = "vers_rlm_machines"
"""The name of our `machines` package in an archive."""

COMPILE_SECONDS: Final = 60.0
"""How long starting Python and compiling a few modules may take on a loaded host."""

LOADER_MARK: Final = "# Loads a program of vers-rlm."
"""How an argument of every process begins whose program came by the loader."""

_LOADER: Final = f"""\
{LOADER_MARK}
import os, sys
source, size = map(int, sys.argv[1:3])
archive = os.memfd_create("vers-rlm")
while size:
    size -= os.write(archive, os.read(source, size) or sys.exit("the code was cut short"))
sys.path.insert(0, "/proc/self/fd/%d" % archive)
from {PACKAGE}.{{}} import main; main()
"""


def loader(module: str, code: bytes, source: int = 0) -> list[str]:
    """Arguments for a machine's Python: it runs the `main` of a module of an archive.

    Args:
        module: Its name below our package of machines.
        code: The archive, which is then to be sent.
        source: The descriptor that it is read from.
    """
    return ["-I", "-S", "-c", _LOADER.format(module), str(source), str(len(code))]


@cache
def guest_code(*rooms: str, python: Path | None = None, local: bool = False) -> bytes:
    """An archive with the guest modules of rooms of this package, which keep their places.

    Args:
        rooms: Their names.
        python: The Python that finds them compiled; our own when None. Raises OSError or
            SubprocessError when it cannot be run.
        local: Whether it runs on this computer, with the Python that it was compiled for.
    """
    machines = resources.files(__name__.rpartition(".")[0])
    sources = {f"{PACKAGE}/__init__.py": b""}
    for room in rooms:
        sources[f"{PACKAGE}/{room}/__init__.py"] = b""
        sources |= modules(machines / room / "guest", f"{PACKAGE}/{room}/guest")
    return pack(sources, python, local=local)


def modules(folder: Traversable, package: str) -> dict[str, bytes]:
    """The modules in a folder, by the paths that they have in an archive."""
    files = sorted(folder.iterdir(), key=lambda file: file.name)
    return {f"{package}/{f.name}": f.read_bytes() for f in files if f.name.endswith(".py")}


def pack(sources: Mapping[str, bytes], python: Path | None = None, *, local: bool = False) -> bytes:
    """An archive of modules. The same modules always give the same bytes.

    A local one is bytecode alone, not compressed: it is imported in two thirds of the time.
    """
    compiled = _compile_with(python, sources) if python else bytecode.compile_all(sources)
    buffer = io.BytesIO()
    method = zipfile.ZIP_STORED if local else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, source in sources.items():
            for path, data in ((name, source), (f"{name}c", compiled[name])):
                if path != name or not local:
                    # A fixed date, so that the bytes are always the same.
                    archive.writestr(zipfile.ZipInfo(path), data, method)
    return buffer.getvalue()


def _compile_with(python: Path, sources: Mapping[str, bytes]) -> dict[str, bytes]:
    command = [python, "-I", "-S", bytecode.__file__]
    result = subprocess.run(
        command,
        input=marshal.dumps(dict(sources)),
        stdout=subprocess.PIPE,
        check=True,
        timeout=COMPILE_SECONDS,
    )
    return marshal.loads(result.stdout)  # noqa: S302 - of a Python of this computer
