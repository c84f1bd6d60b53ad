"""The kernel's guest half as one file that any Python can run: a zip with sources and bytecode."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import io
import marshal
import zipfile
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

_PACKAGE = "vers_rlm_kernel"
ENTRY = (
    "import os, sys; sent, sys.path[0] = sys.argv[1:3]; "
    "os.path.exists(sent) and os.rename(sent, sys.path[0]); "
    f"from {_PACKAGE}.guest.attach import main; main()"
)
"""What Python is told to run. Its first two arguments are the path that the archive was sent to,
and the one that it is to have, where a kernel may be reading it. To run the archive itself would
take 5 ms more, and with the working directory on the path, files there could get in the way.
"""
_UNCHECKED = (1).to_bytes(4, "little")
"""Flags of a bytecode file that is valid for its source without a look at it (PEP 552)."""
_PLAIN = 2
"""The last version of marshal whose output does not depend on what else refers to an object."""


@functools.cache
def guest_archive() -> tuple[str, bytes]:
    """The archive's name, which changes with its content, and its bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, source in _sources().items():
            _add(archive, name, source)
    data = buffer.getvalue()
    return f"kernel-{hashlib.sha256(data).hexdigest()[:16]}.pyz", data


def _sources() -> dict[str, bytes]:
    kernel = resources.files(__name__.rpartition(".")[0])
    return {
        f"{_PACKAGE}/__init__.py": b"",
        f"{_PACKAGE}/wire.py": (kernel / "wire.py").read_bytes(),
        **_modules(kernel / "guest", f"{_PACKAGE}/guest"),
        **_modules(resources.files("cloudpickle"), "cloudpickle"),
    }


def _modules(folder: Traversable, prefix: str) -> dict[str, bytes]:
    files = sorted(folder.iterdir(), key=lambda file: file.name)
    return {f"{prefix}/{f.name}": f.read_bytes() for f in files if f.name.endswith(".py")}


def _add(archive: zipfile.ZipFile, name: str, source: bytes) -> None:
    """Add a module; a Python of our own version finds it compiled, any other compiles it."""
    code = compile(source, name, "exec", dont_inherit=True)
    header = importlib.util.MAGIC_NUMBER + _UNCHECKED + importlib.util.source_hash(source)
    for path, data in ((name, source), (name + "c", header + marshal.dumps(code, _PLAIN))):
        archive.writestr(zipfile.ZipInfo(path), data)  # a date of its own would change the name
