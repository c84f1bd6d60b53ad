"""What comes from a machine is believed in nothing."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Callable

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vers_rlm_mcp.errors import MachineGone
from vers_rlm_mcp.machines.bubblewrap.guest import wire
from vers_rlm_mcp.machines.bubblewrap.process import read_status
from vers_rlm_mcp.machines.bubblewrap.sandbox import Sandbox, check_reply
from vers_rlm_mcp.machines.bubblewrap.streams import MAX_REPLY, PipeReceiveStream, read_reply


def pipe_with(data: bytes) -> PipeReceiveStream:
    reading, writing = os.pipe()
    os.write(writing, data)
    os.close(writing)
    return PipeReceiveStream(reading)


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_fields_come_out_as_they_went_in(fields: list[bytes]) -> None:
    assert wire.unpack(wire.pack(fields)) == fields


@given(st.binary(max_size=200))
def test_any_bytes_are_fields_or_a_value_error(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert wire.pack(wire.unpack(data)) == data


def test_a_frame_has_a_limit() -> None:
    with pytest.raises(ValueError, match="a frame of"):
        wire.frame([bytes(wire.MAX_FRAME)])


@pytest.mark.parametrize("cut", range(12))
async def test_a_reply_that_ends_early_is_none(cut: int) -> None:
    stream = pipe_with(wire.frame([b"exit", b"0"])[:cut])
    assert await read_reply(stream) == []
    await stream.aclose()


@pytest.mark.parametrize("data", [
    b"\xff\xff\xff\xff" + bytes(60_000),
    wire.frame([bytes(MAX_REPLY)])[: MAX_REPLY - 8],
    b"\x00\x00\x00\x08\x00\x00\x00\xffabcd",
])  # fmt: skip
async def test_a_malformed_reply_is_told_apart_and_bounded(data: bytes) -> None:
    reading, writing = os.pipe()
    stream = PipeReceiveStream(reading)

    async def flood() -> None:
        os.set_blocking(writing, False)
        rest = data * 3
        while rest:
            try:
                rest = rest[os.write(writing, rest) :]
            except BlockingIOError:
                await anyio.wait_writable(writing)
            except BrokenPipeError:
                return

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(flood)
            with pytest.raises(MachineGone, match="no sense"):
                await read_reply(stream)
            tasks.cancel_scope.cancel()
    await stream.aclose()
    os.close(writing)


@pytest.mark.parametrize("fields", [
    [b"exit"], [b"exit", b"x"], [b"exit", b"-1"], [b"signal", b"9", b"9"], [b"sudo", b"0"], [b""],
    [b"exit", b""], [b"exit", b"9" * 5000], [b"signal", b"9" * 60_000],
])  # fmt: skip
async def test_a_forged_status_is_no_status(fields: list[bytes]) -> None:
    stream = pipe_with(wire.frame(fields))
    with pytest.raises(MachineGone):
        await read_status(stream)
    await stream.aclose()


@pytest.mark.parametrize("fields", [
    [b"maybe"], [b"error"], [b"error", b"x", b"y"], [b"error", b"", b""],
    [b"error", b"9" * 5000, b"y"],
])  # fmt: skip
def test_a_forged_reply_is_no_reply(fields: list[bytes]) -> None:
    with pytest.raises(MachineGone, match="no sense"):
        check_reply(fields)


@given(st.lists(st.binary(max_size=40) | st.sampled_from([b"ok", b"error", b"5"]), min_size=1))
def test_any_reply_is_a_result_an_error_or_refused(fields: list[bytes]) -> None:
    with contextlib.suppress(OSError, MachineGone):
        assert check_reply(fields) == fields[1:]


REPLY = wire.frame([b"ok", b"123", wire.pack([b"a", b"b"])])


@given(
    st.lists(st.tuples(st.integers(0, len(REPLY) - 1), st.integers(0, 255)), max_size=6),
    st.integers(0, len(REPLY)),
    st.binary(max_size=20),
)
async def test_a_reply_with_bytes_changed_cut_or_added_is_one_or_is_refused(
    changes: list[tuple[int, int]], cut: int, more: bytes
) -> None:
    data = bytearray(REPLY)
    for place, value in changes:
        data[place] = value
    stream = pipe_with(bytes(data[:cut]) + more)
    with contextlib.suppress(MachineGone, OSError):
        fields = await read_reply(stream)
        assert sum(map(len, fields)) <= MAX_REPLY
        assert not fields or check_reply(fields) == fields[1:]
    await stream.aclose()


Answer = Callable[[int], object]
"""What a PID 1 does with the descriptor on which a reply is due."""


def overlong(reply: int) -> None:
    with contextlib.suppress(BrokenPipeError):
        while True:
            os.write(reply, b"\xff" * 60_000)


def forged(*fields: bytes) -> Answer:
    return raw(wire.frame(fields))


def raw(data: bytes) -> Answer:
    return lambda reply: os.write(reply, data)


@pytest.fixture
async def taken_over() -> AsyncIterator[tuple[Sandbox, list[Answer]]]:
    """A machine whose PID 1 was replaced: it answers each request with the next of a list."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    answers: list[Answer] = []

    def serve() -> None:
        with theirs:
            while rights := socket.recv_fds(theirs, 65536, 8)[1]:
                answers.pop(0)(rights[0])
                for descriptor in rights:
                    os.close(descriptor)

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


@pytest.mark.parametrize("answer", [
    overlong, forged(), forged(b"yes"), forged(b"error", b"9" * 5000, b""), raw(b""),
    raw(b"\x00\x00\x00\x08\x00\x00\x00\xffabcd"), raw(wire.frame([b"ok"])[:-1]),
])  # fmt: skip
async def test_a_pid_1_that_was_taken_over_ends_its_machine_and_fills_no_memory(
    taken_over: tuple[Sandbox, list[Answer]], answer: Answer
) -> None:
    sandbox, answers = taken_over
    answers += [answer]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with anyio.fail_after(10), pytest.raises(MachineGone):
        await sandbox.request(b"run")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 * 1024


async def test_a_pid_1_that_keeps_silent_is_given_up(
    taken_over: tuple[Sandbox, list[Answer]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vers_rlm_mcp.machines.bubblewrap.sandbox.REPLY_SECONDS", 0.1)
    sandbox, answers = taken_over
    silence = threading.Event()

    def wait(_: int) -> None:
        silence.wait(10)

    answers += [wait]
    with anyio.fail_after(5), pytest.raises(MachineGone, match="does not answer"):
        await sandbox.request(b"run")
    silence.set()


async def test_a_pid_1_that_drips_its_answer_is_given_up(
    taken_over: tuple[Sandbox, list[Answer]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vers_rlm_mcp.machines.bubblewrap.sandbox.REPLY_SECONDS", 0.3)
    sandbox, answers = taken_over
    halt = threading.Event()

    def drip(reply: int) -> None:
        with contextlib.suppress(BrokenPipeError):
            for byte in wire.frame([b"ok", bytes(1000)]):
                os.write(reply, bytes([byte]))
                if halt.wait(0.01):
                    return

    answers += [drip]
    with anyio.fail_after(5), pytest.raises(MachineGone, match="does not answer"):
        await sandbox.request(b"run")
    halt.set()
