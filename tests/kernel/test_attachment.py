from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest
from repl import FUNCTIONS, Host, Repl, end_kernel, ended, is_running

from machine_proxy import MachineProxy
from vers_rlm_mcp.errors import KernelError, KernelGone, MachineError, PathRefused
from vers_rlm_mcp.kernel import Kernel

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Mapping, Sequence

    from pydantic import JsonValue

    from vers_rlm_mcp.kernel import HostCall
    from vers_rlm_mcp.machines import Machine, Process
    from vers_rlm_mcp.testing import FakeMachine
    from vers_rlm_mcp.values import CellResult


class Watched(MachineProxy):
    """A machine that remembers what was started in it, and can be out of reach."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self.started: list[Process] = []
        self.reachable = True

    async def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> Process:
        if not self.reachable:
            raise MachineError("The machine is out of reach.")
        self.started.append(await super().spawn(argv, env=env, cwd=cwd))
        return self.started[-1]


@contextlib.asynccontextmanager
async def connected(machine: Machine) -> AsyncGenerator[Repl]:
    kernel = await Kernel.connect(machine, home_id="home", functions=FUNCTIONS)
    try:
        yield Repl(kernel, Host())
    finally:
        await kernel.aclose()


def processes_of(machine: FakeMachine) -> list[int]:
    """Every process that was started in a machine and runs."""
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if machine.id.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return [pid for pid in found if is_running(pid)]


async def pid_of(repl: Repl) -> int:
    return int(await repl.output("import os; os.getpid()"))


async def test_the_kernel_outlives_its_host(machine: FakeMachine) -> None:
    async with connected(machine) as repl:
        await repl.output("x = 1")
    async with connected(machine) as repl:
        assert await repl.output("x") == "1\n"


async def test_cells_keep_being_numbered_after_another_host_attached(
    machine: FakeMachine,
) -> None:
    async with connected(machine) as repl:
        await repl.output("def f():\n    return 1 / 0")
    async with connected(machine) as repl:
        error = await repl.error("f()")
    assert "Cell 2, line 1" in error
    assert "Cell 1, line 2, in f\n    return 1 / 0" in error


@pytest.mark.assumes("host")
async def test_two_hosts_that_start_at_once_share_one_kernel(machine: FakeMachine) -> None:
    async def connect() -> None:
        async with connected(machine):
            pass

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(connect)
        tasks.start_soon(connect)
    assert len(processes_of(machine)) == 1


async def test_the_newest_host_wins(machine: FakeMachine) -> None:
    async with connected(machine) as first:
        await first.output("x = 1")
        async with connected(machine) as second:
            assert await second.output("x += 1; x") == "2\n"
        assert await first.output("x") == "2\n"


async def test_a_host_that_sends_its_program_leaves_that_of_the_kernel_whole(
    machine: FakeMachine,
) -> None:
    seen: list[str] = []

    class Slow(Watched):
        async def write(
            self, path: str, data: bytes | AsyncIterable[bytes], *, mode: int = 0o644
        ) -> int:
            assert isinstance(data, bytes)
            await machine.write(path, data[: len(data) // 2], mode=mode)
            seen.append(
                await first.output(
                    "import sys, zipfile; kernel = sys.modules['vers_rlm_kernel'].__file__\n"
                    "zipfile.ZipFile(kernel.partition('/vers_rlm')[0]).testzip() is None"
                )
            )
            return await super().write(path, data, mode=mode)

    async with connected(machine) as first, connected(Slow(machine)) as second:
        assert await second.output("kernel is None") == "False\n"
    assert seen == ["True\n"]


async def test_a_newer_host_interrupts_what_runs_for_the_former(machine: FakeMachine) -> None:
    asked = anyio.Event()
    results: list[CellResult] = []

    async def handler(call: HostCall) -> JsonValue:
        asked.set()
        await anyio.sleep_forever()

    async with connected(machine) as first, anyio.create_task_group() as tasks:
        code = "try:\n    llmQuery('a')\nexcept BaseException as e:\n    caught = e\n    raise"

        async def run() -> None:
            results.append(await first.kernel.run(code, timeout=20, handler=handler))

        tasks.start_soon(run)
        with anyio.fail_after(10):
            await asked.wait()
            async with connected(machine) as second:
                output = await second.output("type(caught).__name__, str(caught)")
                assert output in {
                    "('HostError', 'the connection to the host was lost')\n",
                    "('KeyboardInterrupt', '')\n",
                }
    assert results[0].status == "interrupted"
    assert results[0].lost == ()
    assert results[0].error
    assert "Another host took the kernel over" in results[0].error


async def test_a_cell_whose_connection_breaks_is_reported_and_not_run_again(
    machine: FakeMachine,
) -> None:
    watched = Watched(machine)
    started = anyio.Event()
    async with connected(watched) as repl, anyio.create_task_group() as tasks:
        await repl.output("runs = 0")

        async def run() -> None:
            result = await repl(
                "runs += 1\nprint('on', flush=True)\nimport time; time.sleep(60)",
                on_output=lambda _: started.set(),
            )
            assert (result.status, result.output, result.lost) == ("interrupted", "on\n", ())

        tasks.start_soon(run)
        with anyio.fail_after(10):
            await started.wait()
            await watched.started[-1].kill()
    async with connected(watched) as repl:
        assert await repl.output("runs") == "1\n"


async def test_a_connection_that_broke_between_cells_is_replaced_at_the_next(
    machine: FakeMachine,
) -> None:
    watched = Watched(machine)
    async with connected(watched) as repl:
        await repl.output("x = 1")
        await watched.started[-1].kill()
        await watched.started[-1].wait()
        assert await repl.output("x") == "1\n"
        assert len(watched.started) == 2


async def test_a_machine_out_of_reach_is_an_error_of_the_machine(machine: FakeMachine) -> None:
    watched = Watched(machine)
    async with connected(watched) as repl:
        watched.reachable = False
        await watched.started[-1].kill()
        with pytest.raises(MachineError, match="out of reach"):
            await repl("1")
        watched.reachable = True
        assert await repl.output("1") == "1\n"


@pytest.mark.assumes("host")
async def test_a_kernel_stuck_in_another_hosts_cell_is_replaced(machine: FakeMachine) -> None:
    started = anyio.Event()
    async with connected(machine) as first, anyio.create_task_group() as tasks:
        pid = await pid_of(first)

        async def run() -> None:
            with contextlib.suppress(KernelError):
                await first(
                    "import time\nprint(1, flush=True)\n"
                    "while True:\n    try: time.sleep(0.01)\n    except BaseException: pass",
                    on_output=lambda _: started.set(),
                )

        tasks.start_soon(run)
        with anyio.fail_after(10):
            await started.wait()
            async with connected(machine) as second:
                assert not is_running(pid)
                assert await second.output("1") == "1\n"


@pytest.mark.assumes("host")
async def test_killing_the_kernel_ends_what_runs_under_it_too(machine: FakeMachine) -> None:
    async with connected(machine) as repl:
        pid = await pid_of(repl)
        child = int(
            await repl.output("import subprocess; p = subprocess.Popen(['sleep', '99']); p.pid")
        )
        await end_kernel(machine)
        await ended(pid)
        await ended(child)


async def test_a_closed_kernel_says_so(machine: FakeMachine) -> None:
    async with connected(machine) as repl:
        await repl.kernel.aclose()
        assert repl.kernel.closed
        with pytest.raises(KernelGone, match="closed"):
            await repl("1")


@pytest.mark.assumes("host")
async def test_a_socket_left_by_a_dead_kernel_is_no_obstacle(machine: FakeMachine) -> None:
    async with connected(machine) as repl:
        await repl("import os; os.kill(os.getpid(), 9)")
        os.kill(await pid_of(repl), signal.SIGKILL)
    async with connected(machine) as repl:
        assert await repl.output("1") == "1\n"


async def test_a_machine_without_python_is_an_error_that_says_so(machine: FakeMachine) -> None:
    class WithoutPython(Watched):
        async def spawn(
            self,
            argv: Sequence[str],
            *,
            env: Mapping[str, str] | None = None,
            cwd: str | None = None,
        ) -> Process:
            raise PathRefused(f"Cannot start {argv[0]!r}.")

    with pytest.raises(KernelError, match="python3 cannot be run there"):
        await Kernel.connect(WithoutPython(machine), home_id="home")


async def test_a_program_that_fails_is_an_error_with_its_words(machine: FakeMachine) -> None:
    class Broken(Watched):
        async def spawn(
            self,
            argv: Sequence[str],
            *,
            env: Mapping[str, str] | None = None,
            cwd: str | None = None,
        ) -> Process:
            return await super().spawn(["sh", "-c", "echo no such module >&2; exit 1"])

    with anyio.fail_after(5), pytest.raises(KernelError, match="no such module"):
        await Kernel.connect(Broken(machine), home_id="home")


async def test_where_run_cannot_be_written_the_kernel_lives_in_tmp(machine: FakeMachine) -> None:
    class ReadOnlyRun(Watched):
        async def write(
            self, path: str, data: bytes | AsyncIterable[bytes], *, mode: int = 0o644
        ) -> int:
            if path.startswith("/run"):
                raise PathRefused("read-only")
            return await super().write(path, data, mode=mode)

    async with connected(ReadOnlyRun(machine)) as repl:
        assert await repl.output("1") == "1\n"


async def test_nothing_of_the_kernel_is_in_the_way_of_the_cells(machine: FakeMachine) -> None:
    async with connected(machine) as repl:
        output = await repl.output(
            "import os, sys, threading\n"
            "print(sys.argv, sys.path[0], 'wire' in sys.modules, 'guest' in sys.modules)\n"
            "descriptors = {n: os.readlink(f'/proc/self/fd/{n}') for n in (0, 1, 2)}\n"
            "print(descriptors[0], descriptors[1] == descriptors[2], os.getsid(0) == os.getpid())\n"
            "_ = os.system('echo $(ls /proc/self/fd)')"
        )
    assert output == "['']  False False\n/dev/null True True\n0 1 2 3\n"


async def test_a_kernel_that_finds_itself_in_another_machine_draws_other_random_numbers(
    machine: FakeMachine,
):
    """As in a copy that took the memory along: the process is the same, the machine is not."""
    drawn: list[str] = []
    for home_id in ("home", "home", "copy", "copy of it"):
        kernel = await Kernel.connect(machine, home_id=home_id)
        repl = Repl(kernel, Host())
        if home_id == "home":
            await repl.output("import random; random.seed(1)")
        drawn.append(await repl.output("random.random()"))
        await kernel.aclose()
    seeded, again, copy, copy_of_it = drawn
    assert seeded == again
    assert len({seeded, copy, copy_of_it}) == 3
