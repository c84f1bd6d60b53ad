from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import anyio
import pytest
from repl import FUNCTIONS, Host, Repl, ended, is_running, written

from vers_rlm_mcp.errors import InputError
from vers_rlm_mcp.kernel import Kernel, cell_run, host

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pydantic import JsonValue

    from vers_rlm_mcp.kernel import HostCall
    from vers_rlm_mcp.testing import FakeMachine
    from vers_rlm_mcp.values import CellResult

STUBBORN = (
    "import time\nprint('trying')\n"
    "while True:\n    try:\n        time.sleep(0.01)\n    except BaseException: pass"
)
"""A cell that cannot be interrupted."""


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time; time.sleep(60)",
        "exec('sleep 60')",
        "import threading; threading.Event().wait()",
        "import asyncio; await asyncio.sleep(60)",
        "import select; select.select([], [], [])",
        "print('x' * 1000)\nwhile True: print('y' * 1000)",
        "import os; os.read(os.pipe()[0], 1)",
    ],
)
async def test_the_time_limit_is_kept_while_the_cell_runs(repl: Repl, code: str) -> None:
    await repl.output("x = 1")
    result = await repl(code, timeout=0.3)
    assert result.status == "timeout"
    assert 0.3 <= result.seconds < 0.3 + host.INTERRUPT_SECONDS
    assert result.error
    assert "time limit of 0.3 s" in result.error
    assert "Cell 2, line" in result.error
    assert result.lost == ()
    assert await repl.output("x") == "1\n"


async def test_a_call_to_the_host_does_not_outlive_the_time_limit(repl: Repl) -> None:
    cancelled = False

    async def handler(call: HostCall) -> JsonValue:
        nonlocal cancelled
        try:
            await anyio.sleep_forever()
        finally:
            cancelled = True

    result = await repl.kernel.run("llmQuery('a')", timeout=0.3, handler=handler)
    assert (result.status, cancelled) == ("timeout", True)
    assert result.seconds < 0.3 + host.INTERRUPT_SECONDS
    assert await repl.output("llmQuery('b')") == "'b'\n"


@pytest.mark.assumes("quick")
async def test_a_call_that_is_interrupted_while_it_is_sent_does_no_harm(
    repl: Repl, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def handler(call: HostCall) -> JsonValue:
        await anyio.sleep_forever()

    # The host takes one call, looks at a second, and then lets the pipe fill.
    monkeypatch.setattr(cell_run, "MAX_CALL_BYTES", 150_000)
    await repl.output("x = 1")
    result = await repl.kernel.run(
        "import threading, time\n"
        "def ask():\n    try: llmQuery('x' * 100_000)\n    except RuntimeError: pass\n"
        "for _ in range(2): threading.Thread(target=ask).start()\n"
        "while threading.active_count() < 5: time.sleep(0.001)\n"
        "llmQuery('x' * 20_000_000)",
        timeout=1,
        handler=handler,
    )
    assert (result.status, result.lost) == ("timeout", ())
    assert await repl.output("x") == "1\n"


async def test_calls_after_the_time_limit_are_refused(repl: Repl) -> None:
    result = await repl(
        "import time\n"
        "try:\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n"
        "    try: llmQuery('late')\n"
        "    except RuntimeError as e: print(e)",
        timeout=0.3,
    )
    assert (result.status, result.output) == ("timeout", "the cell was interrupted\n")
    assert repl.host.calls == []


async def test_a_cell_that_swallows_one_interrupt_is_interrupted_again(repl: Repl) -> None:
    result = await repl(
        "import time\ntry:\n    time.sleep(60)\nexcept KeyboardInterrupt: pass\ntime.sleep(60)",
        timeout=0.2,
    )
    assert (result.status, result.lost) == ("timeout", ())


async def test_a_cell_that_cannot_be_interrupted_is_killed_and_what_is_lost_is_named(
    repl: Repl,
) -> None:
    await repl.output("a = 1\ndef b(): pass")
    result = await repl(STUBBORN, timeout=0.3)
    assert result.status == "timeout"
    assert result.seconds < 10
    assert result.output == "trying\n"
    assert result.lost == ("a", "b")
    assert result.error
    assert "it did not stop, so the kernel was restarted" in result.error
    assert "NameError" in await repl.error("a")


async def test_compiled_code_that_never_looks_up_is_killed(repl: Repl) -> None:
    result = await repl("import re\nre.match('(a+)+$', 'a' * 40 + 'b')", timeout=0.2)
    assert result.status == "timeout"
    assert await repl.output("1") == "1\n"


async def test_final_in_the_last_moment_counts(repl: Repl) -> None:
    result = await repl(
        "import time\ntry:\n    time.sleep(60)\nfinally:\n    FINAL(x=1)", timeout=0.2
    )
    assert result.status == "final"
    assert result.final
    assert result.final.kwargs == {"x": 1}


async def test_cancelling_interrupts_the_cell_and_keeps_the_variables(repl: Repl) -> None:
    await repl.output("x = 1")
    with anyio.move_on_after(0.2) as scope, anyio.fail_after(1.2):
        await repl("import time\ntry:\n    time.sleep(60)\nfinally:\n    x = 2")
    assert scope.cancelled_caught
    assert await repl.output("x") == "2\n"


@pytest.mark.assumes("host")
async def test_cancelling_kills_a_cell_that_cannot_be_interrupted(repl: Repl) -> None:
    await repl.output("x = 1\nimport os\npid = os.getpid()")
    pid = int(await repl.output("pid"))
    started = anyio.current_time()
    with anyio.move_on_after(0.2):
        await repl(STUBBORN)
    assert anyio.current_time() - started < 1.5
    assert not is_running(pid)
    result = await repl("1")
    assert (result.output, result.lost) == ("1\n", ("x", "os", "pid"))


async def test_cancelling_before_the_cell_has_begun_costs_nothing(repl: Repl) -> None:
    await repl.output("x = 1")
    with anyio.fail_after(10):
        for _ in range(20):
            with anyio.CancelScope() as scope:
                scope.cancel()
                await repl("x = 2")
        for delay in range(20):
            with anyio.move_on_after(delay / 10_000):
                await repl("import time; time.sleep(5)")
    assert await repl.output("x") == "1\n"


async def test_cancelling_while_the_code_is_still_on_its_way_costs_nothing(repl: Repl) -> None:
    await repl.output("x = 1\nimport threading, time")
    with anyio.move_on_after(0.05):
        await repl("time.sleep(5)\n" + "#" * 30_000_000)
    assert await repl.output("x") == "1\n"


async def test_code_too_large_to_send_is_refused(repl: Repl) -> None:
    await repl.output("x = 1")
    with pytest.raises(InputError, match="write it into a file"):
        await repl("#" * 40_000_000)
    assert await repl.output("x") == "1\n"


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("import os; os._exit(3)", "exit code 3"),
        ("import os; os.kill(os.getpid(), 9)", "signal 9 (SIGKILL: most likely it used more"),
        ("import ctypes; ctypes.string_at(0)", "signal 11 (SIGSEGV"),
        ("import os; os.abort()", "signal 6"),
    ],
)
async def test_a_kernel_that_dies_is_restarted_and_what_is_lost_is_named(
    repl: Repl, code: str, how: str
) -> None:
    await repl.output("a = 1")
    result = await repl(f"print('last words', flush=True)\n{code}")
    assert result.status == "died"
    assert result.output in {"last words\n", ""}
    assert result.lost == ("a",)
    assert result.error
    assert how in result.error
    assert "NameError" in await repl.error("a")


async def test_what_was_written_before_a_signal_to_oneself_is_told(repl: Repl) -> None:
    await repl.output("import os, sys; sys.setswitchinterval(60)")
    result = await repl("print('last words'); os.kill(os.getpid(), 9)")
    assert (result.status, result.output) == ("died", "last words\n")


@pytest.mark.assumes("host")
async def test_a_kernel_that_died_between_cells_is_restarted_before_the_next(
    repl: Repl,
) -> None:
    pid = int(await repl.output("import os\na = 1\nos.getpid()"))
    os.kill(pid, signal.SIGKILL)
    await ended(pid)
    for _ in range(20):  # the event loop takes notice of the end of the stream
        await anyio.lowlevel.checkpoint()
    result = await repl("1 + 1")
    assert (result.status, result.output, result.lost) == ("ok", "2\n", ("os", "a"))


async def test_output_is_cut_in_the_middle_and_says_by_how_much(machine: FakeMachine) -> None:
    kernel = await Kernel.connect(machine, home_id="home", functions=FUNCTIONS, output_limit=1000)
    repl = Repl(kernel, Host())
    result = await repl("print('a' * 5000 + 'b' * 5000, end='')")
    assert result.output == "a" * 500 + "\n… 9000 bytes left out …\n" + "b" * 500
    assert written(result) == 10_000
    assert (await repl("print('c' * 1000, end='')")).output == "c" * 1000
    await kernel.aclose()


@pytest.mark.parametrize(
    "code",
    [
        "for _ in range(200): os.write(1, b'x' * 1_000_000)",
        "os.write(1, b'x' * 200_000_000)",
        "print('x' * 199_999_999)",
        "for _ in range(2_000): print('x' * 99_999)",
    ],
)
async def test_much_output_passes_quickly_and_in_bounded_memory(repl: Repl, code: str) -> None:
    await repl.output("import os")
    result = await repl(f"_ = None\n{code}\nNone")
    assert result.status == "ok"
    assert written(result) == 200_000_000
    assert len(result.output) < 1_100_000
    grown = await repl.output(
        "import resource; resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 500_000"
    )
    assert grown == "True\n"


async def test_endless_output_stops_at_the_time_limit(repl: Repl) -> None:
    result = await repl("import os\nwhile True: os.write(1, b'x' * 100_000)", timeout=0.5)
    assert result.status == "timeout"
    assert result.seconds < 0.5 + host.INTERRUPT_SECONDS
    assert len(result.output) < 1_100_000
    assert written(result) > 1_100_000


async def test_an_orphan_that_floods_the_output_stalls_no_one(repl: Repl) -> None:
    await repl.output("import subprocess\nyes = subprocess.Popen(['yes'])")
    result = await repl("1")
    assert result.status == "ok"
    assert result.output.endswith("1\n") or "left out" in result.output
    await repl.output("yes.kill(); _ = yes.wait()")
    assert (await repl("2")).status == "ok"


async def test_a_long_text_is_echoed_by_its_ends(repl: Repl) -> None:
    output = await repl.output("'a' * 10_000_000")
    assert len(output) < 300_000
    assert "9800000 of 10000000 left out" in output


async def test_hundreds_of_calls_from_threads_are_answered_at_once(repl: Repl) -> None:
    waiting = 0
    everyone = anyio.Event()

    async def handler(call: HostCall) -> JsonValue:
        nonlocal waiting
        waiting += 1
        if waiting == 256:
            everyone.set()
        await everyone.wait()
        return call.arguments["prompt"]

    with anyio.fail_after(20):
        result: CellResult = await repl.kernel.run(
            "from concurrent.futures import ThreadPoolExecutor\n"
            "with ThreadPoolExecutor(300) as pool:\n"
            "    answers = list(pool.map(llmQuery, map(str, range(300))))\n"
            "answers == [str(n) for n in range(300)]",
            timeout=20,
            handler=handler,
        )
    assert result.output == "True\n", result


async def test_calls_of_threads_that_outlive_their_cell_fail(repl: Repl) -> None:
    await repl.output(
        "import threading, time\n"
        "errors = []\n"
        "def ask():\n"
        "    try: llmQuery('a')\n"
        "    except RuntimeError as e: errors.append(str(e))\n"
        "def later():\n"
        "    while not late: time.sleep(0.001)\n"
        "    ask()\n"
        "late = False\n"
        "thread = threading.Thread(target=later)\n"
        "thread.start()"
    )
    result = await repl("late = True\nwhile not errors: time.sleep(0.001)", timeout=0.2)
    assert result.status in {"timeout", "ok"}
    assert await repl.output("thread.is_alive()") == "False\n"


async def test_an_error_of_the_handler_itself_comes_out_and_the_kernel_stays(repl: Repl) -> None:
    async def handler(call: HostCall) -> JsonValue:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await repl.kernel.run("llmQuery('a')", timeout=10, handler=handler)
    assert await repl.output("1") == "1\n"


@pytest.fixture
async def small(machine: FakeMachine) -> AsyncIterator[Repl]:
    """A kernel whose machine is said to have 256 MiB of memory."""
    kernel = await Kernel.connect(
        machine, home_id=machine.id, functions=FUNCTIONS, memory=256 << 20
    )
    yield Repl(kernel, Host())
    await kernel.aclose()


@pytest.mark.parametrize(
    "code",
    [
        "big = 'x' * (8 << 30)",
        "big = bytearray(8 << 30)",
        "big = []\nwhile True: big.append(bytearray(1 << 20))",
        "big = {}\nwhile True: big[len(big)] = str(len(big))",
    ],
)
async def test_a_cell_that_wants_more_memory_than_there_is_gets_an_error_at_once(
    small: Repl, code: str
) -> None:
    await small.output("kept = 1")
    result = await small(code)
    assert result.status == "error", result
    assert result.error
    assert "MemoryError" in result.error
    assert "cells may hold 224 MiB at once" in result.error
    assert await small.output("big = None\nkept") == "1\n"


async def test_output_is_still_taken_when_memory_is_used_up(small: Repl) -> None:
    result = await small(
        "import os\n"
        "hoard, line = [], b'y' * 1000\n"
        "try:\n"
        "    while True: hoard.append(bytearray(1 << 19))\n"
        "except MemoryError:\n"
        "    for _ in range(3000): os.write(1, line)\n"
        "finally:\n"
        "    del hoard"
    )
    assert result.status == "ok", result.error
    assert written(result) == 3000 * 1000


async def test_stacks_of_threads_do_not_count_against_the_memory_of_cells(small: Repl) -> None:
    code = (
        "import threading\n"
        "halt = threading.Event()\n"
        "threads = [threading.Thread(target=halt.wait) for _ in range(100)]\n"
        "for thread in threads: thread.start()\n"
        "halt.set()\n"
        "for thread in threads: thread.join()"
    )
    assert await small.output(code) == ""


async def test_commands_are_not_held_to_the_memory_of_cells(small: Repl) -> None:
    reserve = "import mmap, time; time.sleep(0.2); m = mmap.mmap(-1, 1 << 30, mmap.MAP_PRIVATE)"
    assert await small.output(f"exec('python3 -c \"{reserve}\"')") == "\n"
