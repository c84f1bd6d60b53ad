"""What comes from a machine's PID 1 is not trusted."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from vers_rlm_mcp.errors import MachineGone
from vers_rlm_mcp.machines.bubblewrap.control import Control
from vers_rlm_mcp.machines.bubblewrap.pipes import PipeReceiveStream
from vers_rlm_mcp.machines.bubblewrap.sandbox import Sandbox
from vers_rlm_mcp.machines.daemon import Daemon
from vers_rlm_mcp.machines.daemon.guest.frames import CHUNK, REPORT, TO_DAEMON
from vers_rlm_mcp.machines.daemon.guest.wire import Decoder, encode

Answer = Callable[[socket.socket, int], object]
"""What a PID 1 does with its connection, and the number of a job that it is asked for."""


def data(job: int, payload: bytes) -> bytes:
    return encode("data", {"job": job, "stream": REPORT}, payload)


def report(text: bytes) -> Answer:
    """Report something, whole."""
    return lambda host, job: host.sendall(data(job, text) + data(job, b""))


def raw(said: bytes) -> Answer:
    return lambda host, _: host.sendall(said)


def overlong(host: socket.socket, job: int) -> None:
    with contextlib.suppress(OSError):
        while True:
            host.sendall(data(job, b"9" * CHUNK))


def hang_up(host: socket.socket, _: int) -> None:
    host.shutdown(socket.SHUT_RDWR)


@pytest.fixture
async def taken_over() -> AsyncIterator[tuple[Sandbox, list[Answer]]]:
    """A machine whose PID 1 was replaced: it answers each request with the next of a list."""
    ours, theirs = socket.socketpair()
    answers: list[Answer] = []

    def serve() -> None:
        decoder = Decoder(TO_DAEMON)
        with theirs, contextlib.suppress(OSError):
            while received := socket.recv_fds(theirs, 65536, 8):
                for frame in decoder.feed(received[0]):
                    if frame.kind == "start":
                        answers.pop(0)(theirs, frame.fields["job"])
                for descriptor in received[1]:
                    os.close(descriptor)
                if not received[0]:
                    return

    reading, writing = os.pipe()
    process = subprocess.Popen(["sleep", "100"], stderr=writing)  # noqa: ASYNC220 - as bwrap is
    with process:
        os.close(writing)
        sandbox = Sandbox(process, ours, PipeReceiveStream(reading))
        sandbox.pid, sandbox.pid_descriptor = process.pid, os.pidfd_open(process.pid)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, serve)
            yield sandbox, answers
            await sandbox.end()


@pytest.mark.parametrize(
    "answer",
    [
        *(overlong, hang_up, report(b""), report(b"yes"), report(b"NaN"), report(b"[" * 50_000)),
        *(report(b"\xff"), report(b"9" * 5000), report(b"!x y"), report(b"!99999 y")),
        *(raw(b"\xff" * 60_000), raw(b"\0\0\0\x04\0\0\0\0abcd"), raw(data(7, b"{}"))),
        raw(encode("exit", {"job": 1, "code": "0", "signal": None})),
    ],
)
async def test_a_pid_1_that_was_taken_over_is_given_up_and_fills_no_memory(
    taken_over: tuple[Sandbox, list[Answer]], answer: Answer
) -> None:
    sandbox, answers = taken_over
    answers += [answer]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with anyio.fail_after(10), pytest.raises(MachineGone):
        await sandbox.request("changes")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 * 1024


async def test_a_pid_1_that_has_ended_is_not_waited_for(
    taken_over: tuple[Sandbox, list[Answer]],
) -> None:
    sandbox, answers = taken_over
    answers += [hang_up]
    for _ in range(2):
        with anyio.fail_after(5), pytest.raises(MachineGone, match="has ended"):
            await sandbox.request("changes")


@pytest.mark.parametrize("value", [None, ["a"], {"obstacle": "", "slots": []}])
async def test_a_report_comes_back_as_it_is(
    taken_over: tuple[Sandbox, list[Answer]], value: Any
) -> None:
    sandbox, answers = taken_over
    answers += [report(json.dumps(value).encode())]
    with anyio.fail_after(10):
        assert await sandbox.request("changes") == value


async def test_an_error_comes_back_with_its_number_and_a_bounded_text(
    taken_over: tuple[Sandbox, list[Answer]],
) -> None:
    sandbox, answers = taken_over
    answers += [report(b"!28 " + b"no room " * 5000)]
    with anyio.fail_after(10), pytest.raises(OSError, match="no room") as caught:
        await sandbox.request("changes")
    assert caught.value.errno == 28
    assert len(str(caught.value)) < 5000


async def test_a_pid_1_that_keeps_silent_is_given_up(
    taken_over: tuple[Sandbox, list[Answer]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vers_rlm_mcp.machines.bubblewrap.sandbox.REPLY_SECONDS", 0.1)
    sandbox, answers = taken_over
    silence = threading.Event()

    def wait(_host: socket.socket, _job: int) -> None:
        silence.wait(10)

    answers += [wait]
    with anyio.fail_after(5), pytest.raises(MachineGone, match="does not answer"):
        await sandbox.request("changes")
    silence.set()


async def test_a_pid_1_that_drips_its_answer_is_given_up(
    taken_over: tuple[Sandbox, list[Answer]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vers_rlm_mcp.machines.bubblewrap.sandbox.REPLY_SECONDS", 0.3)
    sandbox, answers = taken_over
    halt = threading.Event()

    def drip(host: socket.socket, job: int) -> None:
        for byte in data(job, bytes(1000)):
            host.sendall(bytes([byte]))
            if halt.wait(0.01):
                return

    answers += [drip]
    with anyio.fail_after(5), pytest.raises(MachineGone, match="does not answer"):
        await sandbox.request("changes")
    halt.set()


async def test_what_pid_1_does_not_take_yet_waits_with_its_descriptors(
    taken_over: tuple[Sandbox, list[Answer]],
) -> None:
    sandbox, answers = taken_over
    halt = threading.Event()

    def stand_still(host: socket.socket, job: int) -> None:
        halt.wait(10)
        report(b"1")(host, job)

    answers += [stand_still, *([report(b"2")] * 20)]
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sandbox.request, "changes")
            for _ in range(20):  # more than a socket holds
                argument, descriptor = "x" * 100_000, os.open(os.devnull, os.O_RDONLY)
                tasks.start_soon(send, sandbox, argument, descriptor)
            await anyio.sleep(0.1)
            halt.set()


async def send(sandbox: Sandbox, argument: str, descriptor: int) -> None:
    assert await sandbox.request("changes", descriptors=[descriptor], argument=argument) == 2
    os.close(descriptor)


def count_open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_request_whose_descriptors_cannot_be_kept_is_lost_and_not_waited_for() -> None:
    ours, theirs = socket.socketpair()
    daemon = Daemon()
    Control(ours, daemon)
    with theirs:
        before = count_open_files()
        daemon.send_code(bytes(4 << 20))  # more than the socket takes
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = os.dup(theirs.fileno())
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, hard))  # room for no other
            job = daemon.start({}, descriptors=[free])
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            os.close(free)
        with anyio.fail_after(5):
            assert await job.wait() is None
        assert daemon.lost
        assert count_open_files() == before - 1  # its own end is closed
