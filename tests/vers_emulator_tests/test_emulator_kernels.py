"""Kernels in copies. The kernel is reached through the machines themselves, not through SSH."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

from machine_proxy import MachineProxy
from vers_emulator import Options
from vers_rlm_mcp.kernel import Kernel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from conftest import Open
    from raw import RawVers

    from vers_rlm_mcp.kernel import HostCall
    from vers_rlm_mcp.machines import Process

SECONDS = 20.0


class Sessions(MachineProxy):
    """A machine as the kernel's host wants one; programs get what an SSH session would give."""

    def __init__(self, vers: RawVers, vm: str) -> None:
        super().__init__(vers.emulator.cloud.vm(vm).machine)
        self._env = {"PYTHONPATH": "/run/vers-emulator"}

    async def spawn(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: str | None = None
    ) -> Process:
        return await super().spawn(argv, env={**(env or {}), **self._env}, cwd=cwd)


async def connect(vers: RawVers, vm: str) -> Kernel:
    return await Kernel.connect(Sessions(vers, vm), home_id=vm, save_on_copy=False)


async def run(kernel: Kernel, code: str) -> str:
    async def refuse(call: HostCall) -> None:
        raise AssertionError(call.name)

    result = await kernel.run(code, timeout=SECONDS, handler=refuse)
    assert result.status == "ok", result.error
    return result.output.strip()


async def test_a_kernels_variables_live_on_in_copies_and_the_kernel_itself_keeps_running(
    open_vers: Open,
) -> None:
    async with open_vers(Options(fork_kernels=True)) as vers:
        vm = await vers.create()
        kernel = await connect(vers, vm)
        await run(kernel, "import queue, threading; lock = threading.Lock(); x = [1]; y = x")
        commit = await vers.commit(vm)
        await run(kernel, "x.append(2)")
        branch = await vers.branch(vm)
        await run(kernel, "x.append(3)")
        second = await vers.branch(branch)
        reply = await vers.http.post("/vm/from_commit", json={"commit_id": commit})
        for copy, expected in (
            (vm, "[1, 2, 3]"),
            (branch, "[1, 2]"),
            (second, "[1, 2]"),
            (reply.json()["vm_id"], "[1]"),
        ):
            found = kernel if copy == vm else await connect(vers, copy)
            assert await run(found, "print(x, x is y, 'lock' in globals())") == (
                f"{expected} True {copy == vm}"
            )
            await found.aclose()


async def test_a_copy_can_be_taken_while_a_cell_runs(open_vers: Open) -> None:
    async with open_vers(Options(fork_kernels=True)) as vers:
        vm = await vers.create()
        kernel = await connect(vers, vm)
        async with anyio.create_task_group() as tasks:
            code = "import os, time\nx = 1\nopen('/run/go', 'w').close()\n"
            code += "while not os.path.exists('/run/end'): time.sleep(0.01)\nx = 2"
            tasks.start_soon(run, kernel, code)
            await vers.sh(vm, "until [ -e /run/go ]; do sleep 0.01; done")
            copied = await connect(vers, await vers.branch(vm))
            assert await run(copied, "x") == "1"
            await copied.aclose()
            await vers.sh(vm, "touch /run/end")
        assert await run(kernel, "x") == "2"
        await kernel.aclose()


@pytest.mark.parametrize("fork_kernels", [False, True])
async def test_programs_are_told_where_the_emulators_module_lies_only_with_the_option(
    open_vers: Open, fork_kernels: bool
) -> None:
    async with open_vers(Options(fork_kernels=fork_kernels)) as vers:
        vm = await vers.create()
        async with vers.ssh(vm) as ssh:
            told = (await ssh.run('echo "$PYTHONPATH"')).stdout
        assert told == ("/run/vers-emulator\n" if fork_kernels else "\n")


async def test_without_the_option_copies_have_no_kernel(open_vers: Open) -> None:
    async with open_vers() as vers:
        vm = await vers.create()
        kernel = await connect(vers, vm)
        await run(kernel, "x = 1")
        copied = await connect(vers, await vers.branch(vm))
        assert await run(copied, "'x' in globals()") == "False"
        await copied.aclose()
        await kernel.aclose()


async def test_a_mark_that_a_copy_has_of_its_originals_kernel_strikes_no_other_process(
    open_vers: Open,
) -> None:
    async with open_vers(Options(fork_kernels=True)) as vers:
        vm = await vers.create()
        kernel = await connect(vers, vm)
        # As if the original's kernel had had the number that a helper of this kernel has now.
        marks = "for it in /proc/[0-9]*; do grep -qs vers_rlm_kernel $it/cmdline"
        marks += " && touch /run/vers-emulator/${it#/proc/}.kernel; done; ls /run/vers-emulator"
        assert (await vers.sh(vm, marks))["stdout"].count(".kernel") > 1
        async with anyio.create_task_group() as tasks:
            code = "import os, time\nopen('/run/go', 'w').close()\n"
            code += "while not os.path.exists('/run/end'): time.sleep(0.01)\nx = 2"
            tasks.start_soon(run, kernel, code)
            await vers.sh(vm, "until [ -e /run/go ]; do sleep 0.01; done")
            await vers.commit(vm)
            await vers.sh(vm, "touch /run/end")
        assert await run(kernel, "x") == "2"
        await kernel.aclose()
