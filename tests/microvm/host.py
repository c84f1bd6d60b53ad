"""The test host as it runs: a process of QEMU, and commands in it."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .images import Images

MEMORY_MIB: Final = 8192
BOOT_SECONDS: Final = 300.0
"""A minute, on a computer that has nothing else to do."""

PROCESSOR: Final = (
    # Without the instructions that copy bytes: where the clock counts instructions, each byte is a
    # round of QEMU's loop, and the host takes three times as long to boot. Without the fifth level
    # of page tables, which every miss of the nested ones would walk.
    *("-M", "q35", "-cpu", "max,+svm,+npt,-erms,-fsrm,-la57", "-smp", "1", "-m", str(MEMORY_MIB)),
    # Two nanoseconds for each instruction: time limits, ours and those of the machines' monitor,
    # are kept however slow this is.
    *("-accel", "tcg,thread=single,tb-size=1024", "-icount", "shift=1,sleep=on"),
)

KERNEL: Final = (
    "console=ttyS0 net.ifnames=0 rdinit=/init panic=-1 quiet mitigations=off "
    # A processor that waits for a machine's next interrupt keeps the only one there is.
    "kvm.halt_poll_ns=0"
)

SSH: Final = (
    *("-q", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"),
    *("-o", "BatchMode=yes", "-o", "ServerAliveInterval=0"),
)


class Host:
    """A test host from start to end of a ``with``.

    Args:
        images: What it boots from.
        state: The disk that it writes to.
        log: Where its console goes.
        lasting: Whether what it writes stays on that disk.
    """

    def __init__(self, images: Images, state: Path, log: Path, *, lasting: bool = False) -> None:
        self._images = images
        self._state = f"file={state},if=virtio,format=raw,cache=unsafe"
        self._state += "" if lasting else ",snapshot=on"
        self._log = log
        self._port = _free_port()

    def __enter__(self) -> Self:
        images = self._images
        self._key = images.key()
        disks = f"file={images.packages()},if=virtio,format=raw,readonly=on"
        argv = (
            *(str(images.emulator()), *PROCESSOR),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-kernel", str(images.kernel()), "-initrd", str(images.root())),
            *("-append", KERNEL),
            *("-serial", f"file:{self._log}", "-drive", disks),
            *("-drive", self._state),
            *("-netdev", f"user,id=n,restrict=on,hostfwd=tcp:127.0.0.1:{self._port}-:22"),
            *("-device", "virtio-net-pci,netdev=n,romfile=", "-device", "virtio-rng-pci"),
        )
        self._log.write_bytes(b"")
        self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def run(self, command: str, *, stdin: bytes | None = None) -> int:
        """Run a command of its shell, with our outputs, and return its exit code."""
        return subprocess.run([*self.ssh(), command], input=stdin, check=False).returncode

    def ssh(self, *options: str) -> Sequence[str]:
        """The command line that leads there."""
        key = ("-i", str(self._key), "-p", str(self._port))
        return ("ssh", *SSH, *key, *options, "root@127.0.0.1")

    def _wait(self) -> None:
        """Wait until it lets us in."""
        end = time.monotonic() + BOOT_SECONDS
        while b"ready" not in self._log.read_bytes():
            if self._process.poll() is not None:
                raise SystemExit(f"QEMU ended with exit code {self._process.returncode}.")
            if time.monotonic() > end:
                raise SystemExit(f"The test host did not boot in {BOOT_SECONDS:g} s: {self._log}")
            time.sleep(0.5)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def tree_of(root: Path) -> bytes:
    """The files of the project that git knows, or would, as a tar archive."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        check=True,
        capture_output=True,
    ).stdout.split(b"\0")
    there = [name for name in names if name and (root / os.fsdecode(name)).exists()]
    return subprocess.run(
        ["tar", "c", "--null", "--files-from=-"],
        cwd=root,
        check=True,
        input=b"\0".join(there),
        capture_output=True,
    ).stdout
