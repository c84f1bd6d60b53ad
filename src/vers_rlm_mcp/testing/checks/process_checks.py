"""What a machine promises about programs."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, Final

import anyio

from vers_rlm_mcp.errors import PathRefused
from vers_rlm_mcp.machines import ExitStatus, run_command

from .lab import (
    COMMAND_SECONDS,
    MIB,
    CheckFailed,
    Lab,
    MemoryMeter,
    check,
    check_if,
    content,
    expect,
    expect_end,
    expect_equal,
    expect_error,
    is_running,
    isolation,
    run,
    sh,
)

if TYPE_CHECKING:
    from anyio.abc import ByteReceiveStream, ByteSendStream

    from vers_rlm_mcp.machines import Machine

CANARY: Final = "VERS_RLM_CHECK_CANARY"
"""A variable of the host that must not reach a machine."""

ODD_ARGUMENTS: Final = (
    "",
    "with space",
    "quote ' and \"",
    "$(id) `id` $HOME",
    "new\nline",
    "-n",
    "*",
    "back\\slash",
    os.fsdecode(b"\xff\xfe"),
)


FOREGROUND_PRELUDE: Final = """
import ctypes, os, subprocess, threading, time
def stay():
    print(os.getpid(), flush=True)
    time.sleep(1000)
def end_main_thread():
    ctypes.CDLL(None).syscall(60 if os.uname().machine == "x86_64" else 93, 0)
"""

FOREGROUND: Final = {
    "a program that started a session": """
subprocess.run(["setsid", "-w", "sh", "-c", "echo $$; exec sleep 1000"])
""",
    "a program in a new session": """
subprocess.run(["sh", "-c", "echo $$; sleep 1000; true"], start_new_session=True)
""",
    "an orphan in a new session": """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        stay()
    os._exit(0)
os.wait()
time.sleep(1000)
""",
    "an orphan without an environment": """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execve("/bin/sh", ["sh", "-c", "echo $$; while :; do sleep 1; done"], {})
    os._exit(0)
os.wait()
time.sleep(1000)
""",
    "a program whose main thread has ended": """
threading.Thread(target=stay).start()
end_main_thread()
""",
    "an orphan whose main thread has ended": """
if os.fork() == 0:
    os.setsid()
    threading.Thread(target=stay).start()
    end_main_thread()
time.sleep(1000)
""",
}
"""Programs that print the number of a process that they have started, and do not end."""


@check
async def streams_can_be_opened_by_name(lab: Lab) -> None:
    """A program may open its standard streams as files, as shell scripts do."""
    machine = await lab.create()
    script = "cat /dev/stdin > /dev/stdout; echo err > /dev/stderr"
    result = await run_command(machine, script, timeout=COMMAND_SECONDS, stdin=b"in")
    expect_equal((result.stdout.data, result.stderr.data), (b"in", b"err\n"), "the outputs")


@check
async def streams_are_exact(lab: Lab) -> None:
    """Twelve megabytes pass through a program in both directions at once, byte for byte."""
    machine = await lab.create()
    echoed = b""
    data = random.Random(1).randbytes(12 * MIB)  # noqa: S311 - test data
    async with await machine.spawn(["cat"]) as process:
        with anyio.fail_after(COMMAND_SECONDS):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_send, process.stdin, data)
                echoed = await _receive(process.stdout)
            expect_equal(await process.wait(), ExitStatus(0), "the end of cat")
    expect(echoed == data, f"{len(data):,} bytes went in, {len(echoed):,} different ones came out")


@check
async def outputs_are_separate(lab: Lab) -> None:
    """Standard output and standard error are two streams."""
    result = await run(await lab.create(), ["sh", "-c", "echo out; echo err >&2"])
    expect_equal((result.stdout.data, result.stderr.data), (b"out\n", b"err\n"), "the outputs")


@check
async def unread_output_waits(lab: Lab) -> None:
    """A program waits for the reader of its output, which does not fill the host's memory."""
    machine = await lab.create()
    total = 0
    with MemoryMeter():
        async with await machine.spawn(["head", "-c", str(100 * MIB), "/dev/zero"]) as process:
            with anyio.fail_after(COMMAND_SECONDS):
                async for chunk in process.stdout:
                    total += len(chunk)
    expect_equal(total, 100 * MIB, "the bytes that were read")


@check
async def output_outlives_its_program(lab: Lab) -> None:
    """Output can be read after the program has ended, and its status can be asked for again."""
    machine = await lab.create()
    async with await machine.spawn(["sh", "-c", "echo late; exit 3"]) as process:
        with anyio.fail_after(COMMAND_SECONDS):
            expect_equal(await process.wait(), ExitStatus(3), "the end")
            expect_equal(await process.wait(), ExitStatus(3), "the end, when asked for again")
            expect_equal(await _receive(process.stdout), b"late\n", "the output")


@check
async def exit_codes_are_reported(lab: Lab) -> None:
    """Exit codes are reported as they are, even those by which shells stand for signals."""
    machine = await lab.create()
    for code in (0, 1, 2, 126, 127, 137, 143, 255):
        result = await run(machine, ["sh", "-c", f"exit {code}"])
        expect_equal(result.status, ExitStatus(code), f"the end of `exit {code}`")


@check
async def signals_are_reported(lab: Lab) -> None:
    """The status of a program that was ended by a signal names the signal."""
    machine = await lab.create()
    for number in (1, 9, 15):
        result = await run(machine, ["sh", "-c", f"kill -{number} $$"])
        expect_equal(result.status, ExitStatus(None, number), f"the end by signal {number}")


@check
async def arguments_are_exact(lab: Lab) -> None:
    """Arguments reach the program unchanged: empty, quoted, with newlines, not UTF-8."""
    script = 'printf "%s\\0" "$@"'
    result = await run(await lab.create(), ["sh", "-c", script, "sh", *ODD_ARGUMENTS])
    seen = tuple(os.fsdecode(part) for part in result.stdout.data.split(b"\0")[:-1])
    expect_equal(seen, ODD_ARGUMENTS, "the arguments")


@check
async def environment_is_the_machines_own(lab: Lab) -> None:
    """No variable of the host reaches a program. Given ones reach this program only."""
    machine = await lab.create()
    os.environ[CANARY] = "host"
    try:
        given = await run_command(machine, ["env", "-0"], env={"A": "b c\n'$D'"}, timeout=60)
        plain = await run(machine, ["env", "-0"])
    finally:
        del os.environ[CANARY]
    expect(b"A=b c\n'$D'\0" in given.stdout.data, "a given variable arrives changed")
    expect(b"\0PATH=" in b"\0" + given.stdout.data, "given variables replace the machine's own")
    expect(b"A=b c" not in plain.stdout.data, "a given variable stays for the next program")
    expect(CANARY.encode() not in plain.stdout.data, "a variable of the host reaches a program")


@check
async def programs_start_in_their_directory(lab: Lab) -> None:
    """A program starts in /workspace, or in the directory that is given."""
    machine = await lab.create()
    await sh(machine, "echo default > here")
    expect_equal(await content(machine, "/workspace/here"), b"default\n", "/workspace/here")
    directory = "/workspace/a b'$(id)"
    await machine.write(f"{directory}/name", b"given")
    result = await run_command(machine, ["cat", "name"], cwd=directory, timeout=COMMAND_SECONDS)
    expect_equal(result.stdout.data, b"given", f"`name` in {directory}")


@check
async def impossible_programs_are_refused(lab: Lab) -> None:
    """A missing or forbidden program or directory is refused, and the error names it."""
    machine = await lab.create()
    await machine.write("/workspace/plain", b"#!/bin/sh\n", mode=0o644)
    for program in ("no-such-program", "/workspace/missing", "/workspace/plain", "/workspace"):
        error = await expect_error(PathRefused, machine.spawn([program]), f"starting {program!r}")
        expect(program in str(error), f"the error for {program!r} does not name it: {error}")
    for directory in ("/workspace/missing", "/workspace/plain"):
        attempt = machine.spawn(["true"], cwd=directory)
        error = await expect_error(PathRefused, attempt, f"starting in {directory!r}")
        expect(directory in str(error), f"the error for {directory!r} does not name it: {error}")


@check
async def impossible_arguments_are_refused(lab: Lab) -> None:
    """Arguments that are too long or hold a NUL are refused. The machine remains usable."""
    machine = await lab.create()
    for arguments in (["x" * 200_000], ["x" * 100_000] * 60, ["nul\0"]):
        attempt = machine.spawn(["echo", *arguments])
        what = f"{len(arguments)} arguments of {len(arguments[0]):,} characters"
        await expect_error(PathRefused, attempt, what)
    expect_equal(await sh(machine, "echo fine"), "fine\n", "a program afterwards")


@check
async def killing_includes_children(lab: Lab) -> None:
    """Killing ends the program and its children, even those that ignore SIGTERM."""
    machine = await lab.create()
    script = "trap '' TERM HUP INT; sleep 1000 & echo $!; sh -c 'sleep 1000; true' & echo $!; wait"
    async with await machine.spawn(["sh", "-c", script]) as process:
        children = await _numbers(process.stdout, 2)
        with anyio.fail_after(COMMAND_SECONDS):
            await process.kill()
            status = await process.wait()
            await process.kill()
    expect_equal(status, ExitStatus(None, 9), "the end of a killed program")
    await expect_end(machine, children, "after kill")


@check
async def killing_follows_the_foreground(lab: Lab) -> None:
    """Killing ends what a program has started in the foreground, in whatever session."""
    machine = await lab.create()
    for name, body in FOREGROUND.items():
        argv = ["python3", "-c", FOREGROUND_PRELUDE + body]
        async with await machine.spawn(argv) as process:
            children = await _numbers(process.stdout, 1)
            with anyio.fail_after(COMMAND_SECONDS):
                await process.kill()
                await process.wait()
        await expect_end(machine, children, f"after kill: {name}")


@check
async def killing_spares_the_background(lab: Lab) -> None:
    """Killing spares what was put into the background to stay, such as a service."""
    machine = await lab.create()
    for start in ("setsid", "nohup"):
        script = f"{start} sh -c 'echo $$; exec sleep 1000 >/dev/null 2>&1' 2>/dev/null & wait"
        async with await machine.spawn(["sh", "-c", script]) as process:
            (child,) = await _numbers(process.stdout, 1)
            with anyio.fail_after(COMMAND_SECONDS):
                await process.kill()
                await process.wait()
        expect(await is_running(machine, child), f"what {start} had put into the background died")


@check
async def closing_kills(lab: Lab) -> None:
    """Closing a running process kills it and its children, and closes its streams."""
    machine = await lab.create()
    process = await machine.spawn(["sh", "-c", "trap '' TERM HUP; sleep 1000 & echo $!; wait"])
    children = await _numbers(process.stdout, 1)
    with anyio.fail_after(COMMAND_SECONDS):
        await process.aclose()
        await process.aclose()
    await expect_error(
        anyio.ClosedResourceError, process.stdout.receive(), "reading what is closed"
    )
    await expect_error(
        anyio.ClosedResourceError, process.stdin.send(b"x"), "writing what is closed"
    )
    await expect_end(machine, children, "after aclose")


@check
async def cancelling_leaves_no_process(lab: Lab) -> None:
    """Cancelling a command kills it and its children."""
    machine = await lab.create()
    await sh(machine, "mkfifo started")
    script = "sleep 1000 & echo $! $$ > started; wait"
    seen = ""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_run_indefinitely, machine, script)
        seen = await sh(machine, "cat started")
        tasks.cancel_scope.cancel()
    await expect_end(machine, [int(pid) for pid in seen.split()], "after a cancellation")


@check
async def background_programs_keep_running(lab: Lab) -> None:
    """A program in the background outlives the program that started it."""
    machine = await lab.create()
    pid = int(await sh(machine, "sleep 1000 >/dev/null 2>&1 & echo $!"))
    expect(await is_running(machine, pid), "a background program ended with its parent")


@check
async def programs_may_be_concurrent(lab: Lab) -> None:
    """Twenty programs run concurrently, each with its own streams."""
    machine = await lab.create()

    async def echo(number: int) -> None:
        async with await machine.spawn(["cat"]) as process:
            await arrive()
            await _send(process.stdin, b"%d" % number)
            expect_equal(await _receive(process.stdout), b"%d" % number, "the echo")

    all_arrived = anyio.Event()
    waiting = 0

    async def arrive() -> None:
        nonlocal waiting
        waiting += 1
        if waiting == 20:
            all_arrived.set()
        await all_arrived.wait()

    with anyio.fail_after(COMMAND_SECONDS):
        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(echo, number)


@check_if(isolation)
async def programs_see_no_process_of_the_host(lab: Lab) -> None:
    """Programs see no process but the machine's."""
    machine = await lab.create()
    async with await anyio.open_process(["sleep", "98765.4321"]) as canary:
        try:
            seen = await sh(machine, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
        finally:
            canary.kill()
    expect("98765.4321" not in seen, "a process of the host is visible in the machine")


async def _send(stream: ByteSendStream, data: bytes) -> None:
    for start in range(0, len(data), MIB):
        await stream.send(data[start : start + MIB])
    await stream.aclose()


async def _receive(stream: ByteReceiveStream) -> bytes:
    received = bytearray()
    async for chunk in stream:
        received += chunk
    return bytes(received)


async def _numbers(stream: ByteReceiveStream, count: int) -> list[int]:
    """The numbers that a program writes first, one per line."""
    received = b""
    with anyio.move_on_after(COMMAND_SECONDS):
        while received.count(b"\n") < count:
            received += await stream.receive()
        return [int(line) for line in received.split(b"\n")[:count]]
    raise CheckFailed("the program wrote too few lines")


async def _run_indefinitely(machine: Machine, script: str) -> None:
    await run_command(machine, ["sh", "-c", script], timeout=1000)
