"""Kernels that live on in copies of their machine, though these copy the disk only.

This is not what the service does, which copies memory whole. It is as much of it as a test of the
kernel's life needs: before a copy is taken, the kernel of the machine writes its variables down in
a fork of its own process; in the copy a kernel is started that reads them back, before anybody
can ask. What cannot be pickled is not there; threads, open files and the cell that was running are
not; the kernel of the copy counts its cells anew. Machines that are paused are copied without.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio

from machine_proxy import MachineProxy
from vers_rlm_mcp.errors import MachineError
from vers_rlm_mcp.kernel import Kernel
from vers_rlm_mcp.machines import Process, run_command

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vers_rlm_mcp.machines import ExitStatus, Machine

DIRECTORY: Final = "/run/vers-emulator"

ENVIRONMENT: Final = {"PYTHONPATH": DIRECTORY}
"""For every program in a machine: lets the kernel find our `queue` before the real one."""

GUEST: Final = Path(__file__).with_name("kernel_guest.py").read_bytes()

SAVE_SECONDS: Final = 20.0
"""How long a kernel may take to write its variables."""

LEAVE_SECONDS: Final = 10.0
"""How long a kernel may take to notice that its host has left."""

SAVE: Final = f"""
cd {DIRECTORY} 2>/dev/null || exit 1
found=1
for mark in *.kernel; do
    pid=${{mark%.kernel}}
    rm -f "$pid.saved"
    grep -qs vers_rlm_kernel "/proc/$pid/cmdline" || continue
    # A copy has the marks of its original, whose numbers other processes may have by now: those
    # catch no SIGUSR2, and would end.
    grep -qs '^SigCgt:.*[89a-f][0-9a-f][0-9a-f]$' "/proc/$pid/status" || continue
    kill -USR2 "$pid" 2>/dev/null || continue
    until [ -e "$pid.saved" ]; do sleep 0.01; done
    found=0
done
exit $found
"""


class _Prepared(MachineProxy):
    """A machine for the host's half of the kernel, whose programs get `ENVIRONMENT`."""

    async def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> Process:
        return _Left(await super().spawn(argv, env={**(env or {}), **ENVIRONMENT}, cwd=cwd))


class _Left(Process):
    """A process that is not killed with its children when it is closed: a kernel is its child."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.stdin, self.stdout, self.stderr = process.stdin, process.stdout, process.stderr

    async def wait(self) -> ExitStatus:
        return await self._process.wait()

    async def kill(self) -> None:
        await self._process.kill()

    async def aclose(self) -> None:
        """Close the streams, upon which the kernel lets go of the process, and it ends."""
        for stream in (self.stdin, self.stdout, self.stderr):
            await stream.aclose()
        with anyio.move_on_after(LEAVE_SECONDS, shield=True):
            await self._process.wait()
        await self._process.aclose()


async def prepare(machine: Machine) -> None:
    """Make the next kernel of a machine one that can be carried over."""
    await machine.write(f"{DIRECTORY}/queue.py", GUEST)


async def save(machine: Machine) -> bool:
    """Let the kernel of a machine write its variables to the disk; False where there is none."""
    result = await run_command(machine, ["sh", "-c", SAVE], timeout=SAVE_SECONDS)
    if result.status is None:
        raise MachineError(f"The kernel of {machine.id} did not write its variables down.")
    return result.status.ok


async def revive(machine: Machine) -> None:
    """Start a kernel that has the variables that were written down, and let go of it."""
    kernel = await Kernel.connect(_Prepared(machine), home_id=machine.id, restore_variables=True)
    await kernel.aclose()
