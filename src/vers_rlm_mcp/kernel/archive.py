"""The kernel's guest half as one file that any Python can run."""

from __future__ import annotations

import functools
import hashlib
from importlib import resources

from vers_rlm_mcp import machines
from vers_rlm_mcp.machines.code import modules, pack

_PACKAGE = "vers_rlm_kernel"
ENTRY = (
    "import os, sys; sent, sys.path[0] = sys.argv[1:3]; "
    "os.path.exists(sent) and os.rename(sent, sys.path[0]); "
    f"from {_PACKAGE}.guest.attach import main; main()"
)
"""The program given to Python. Its first two arguments are the path that the archive was sent to
and its final path, where a kernel may be reading it. Running the archive itself would take 5 ms
more, and with the working directory on the path, files there could get in the way.
"""


@functools.cache
def guest_archive() -> tuple[str, bytes]:
    """The archive's name, which changes with its content, and its bytes."""
    shared = resources.files(machines) / "daemon/guest"
    data = pack(
        {
            f"{_PACKAGE}/__init__.py": b"",
            f"{_PACKAGE}/sessions.py": (shared / "sessions.py").read_bytes(),
            f"{_PACKAGE}/wire.py": (shared / "wire.py").read_bytes(),
            **modules(resources.files(__name__.rpartition(".")[0]) / "guest", f"{_PACKAGE}/guest"),
            **modules(resources.files("cloudpickle"), "cloudpickle"),
        }
    )
    return f"kernel-{hashlib.sha256(data).hexdigest()[:16]}.pyz", data
