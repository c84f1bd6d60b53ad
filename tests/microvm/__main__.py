"""Runs tests where micro-VMs boot: here, or else in a test host.

``python -m microvm [smoke | machines | kernel | all | shell]``
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final

from vers_rlm_mcp.machines.microsandbox import usable

from .host import Host, tree_of
from .images import ROOT, Images, cache_dir, missing_tools

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

IN_HOST: Final = (
    "cd /project && export PYTHONPATH=/packages/site:/project/src:/project/tests "
    "PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 MSB_HOME=/state/msb TMPDIR=/state "
    "VERS_RLM_IMAGE=/packages/image.tar"
)
MACHINES: Final = {
    "VERS_RLM_TEST_MACHINES": "microsandbox",
    "VERS_RLM_VCPU_COUNT": "1",
    "VERS_RLM_MEM_SIZE_MIB": "256",
    "VERS_RLM_FS_SIZE_MIB": "512",
}
"""Small ones: several live at once in an emulated computer of 8 GiB."""

PYTEST: Final = (
    *("-m", "pytest", "-v", "-s", "--tb=short", "--timeout=900", "-p", "no:cacheprovider"),
    # What these tests do without, and what takes most of the time that pytest needs to start.
    *("-p", "no:inline_snapshot", "-p", "no:hypothesispytest", "-p", "no:xdist"),
)
KERNEL: Final = tuple(
    f"tests/kernel/test_{name}.py" for name in ("cells", "final", "functions", "variables")
)
"""The others look at processes of the host, or bring a kernel to the limits of a machine."""

SMOKE: Final = (
    "tests/machines/microsandbox/test_microsandbox_smoke.py",
    "tests/runs/test_microsandbox_runs.py",
)
SUITES: Final = {
    "smoke": SMOKE,
    "machines": ("tests/machines/microsandbox", f"--ignore={SMOKE[0]}"),
    "kernel": KERNEL,
}


def main(what: str) -> int:
    """Run what is asked for, here or in a host."""
    found = usable(cache_dir())
    if found.yes and what != "shell":
        return _test_here(SUITES if what == "all" else [what])
    print(f"Not on this computer, since {found.reason}, but on an emulated one:", flush=True)
    return _test_in_host(what)


def _test_here(suites: Iterable[str]) -> int:
    # Each by itself: where the package panics it ends the whole process.
    return max(
        subprocess.run(
            [sys.executable, *PYTEST, *SUITES[suite]],
            cwd=ROOT,
            env=MACHINES | os.environ,
            check=False,
        ).returncode
        for suite in suites
    )


def _test_in_host(what: str) -> int:
    if missing := missing_tools():
        print(f"The test host needs: apt-get install {' '.join(missing)}")
        return 1
    log = cache_dir() / "console.log"
    started = time.monotonic()
    images = Images(cache_dir())
    state = images.state(lambda disk: _load_image(images, disk, log))
    with Host(images, state, log) as host:
        _send_project(host)
        print(f"The test host booted after {time.monotonic() - started:.0f} s.", flush=True)
        if what == "shell":
            return subprocess.run(
                [*host.ssh("-t"), f"{IN_HOST}; exec bash"], check=False
            ).returncode
        code = host.run(f"{IN_HOST}; python3 -m microvm {what}")
    print(f"All took {time.monotonic() - started:.0f} s; the host's console is in {log}.")
    return code


def _load_image(images: Images, disk: Path, log: Path) -> None:
    with Host(images, disk, log, lasting=True) as host:
        _send_project(host)
        code = host.run(f"{IN_HOST}; python3 -m microvm.machines && cd / && umount /state")
        if code:
            raise SystemExit("The image cannot be loaded in the test host.")


def _send_project(host: Host) -> None:
    host.run("mkdir /project && tar x -m -C /project", stdin=tree_of(ROOT))


def _leave(number: int, _frame: object) -> None:
    """End as after an error, so that QEMU ends, too."""
    sys.exit(f"ended by signal {number}")


if __name__ == "__main__":
    wanted = sys.argv[1] if len(sys.argv) > 1 else "all"
    if wanted not in {*SUITES, "all", "shell"}:
        sys.exit(__doc__)
    signal.signal(signal.SIGTERM, _leave)
    sys.exit(main(wanted))
