"""What the daemon in a machine says is not trusted."""

from __future__ import annotations

from contextlib import suppress

import anyio
import pytest

from vers_rlm_mcp.machines import ExitStatus
from vers_rlm_mcp.machines.daemon import Daemon
from vers_rlm_mcp.machines.daemon.guest.frames import CHUNK, STDERR, STDIN, STDOUT, WINDOW
from vers_rlm_mcp.machines.daemon.guest.wire import encode

LARGEST = b"x" * CHUNK


def output(data: bytes, *, job: object = 1, stream: object = STDOUT) -> bytes:
    return encode("data", {"job": job, "stream": stream}, data)


def taken(size: object) -> bytes:
    return encode("taken", {"job": 1, "size": size})


def exited(code: object, signal: object = None) -> bytes:
    return encode("exit", {"job": 1, "code": code, "signal": signal})


EXITED = exited(7)


@pytest.mark.parametrize(
    "said",
    [
        b"Welcome to Ubuntu 24.04 LTS\n" * 10,
        output(LARGEST + b"x"),
        output(b"of a job that never was", job=2),
        output(b"of no job", job=0),
        output(b"of no number", job="1"),
        output(LARGEST) * (WINDOW // CHUNK + 1),
        output(b"") + output(b"after the end"),
        output(b"", stream=9),
        output(b"", stream=True),
        output(b"input", stream=STDIN),
        encode("data", {"job": 1}, b"of no stream"),
        taken(1),
        taken(-1),
        taken("1"),
        EXITED + EXITED,
        exited("seven"),
        exited(None),
        exited(256),
        exited(None, 10**30),
        encode("start", {"job": 1}),
        encode("unknown", {"job": 1}),
    ],
    ids=[
        *("no frame", "too large", "unknown job", "no job", "a job that is no number"),
        *("over the window", "after the end", "unknown stream", "a stream that is no number"),
        *("input from there", "no stream", "taken what was not sent", "taken less than nothing"),
        *("taken what is no number", "exits twice", "no code", "neither code nor signal"),
        *("no code of a process", "no signal", "a start", "unknown kind"),
    ],
)
async def test_a_daemon_that_breaks_the_rules_is_disconnected(said: bytes) -> None:
    daemon = Daemon()
    job = daemon.start({})
    daemon.received(said)
    assert daemon.lost
    with anyio.fail_after(5):
        status = await job.wait()
        assert status in (None, ExitStatus(7))
        with suppress(anyio.BrokenResourceError):
            async for chunk in job.stdout:
                assert len(chunk) <= WINDOW


async def test_frames_that_are_split_anywhere_are_put_together() -> None:
    daemon = Daemon()
    job = daemon.start({})
    said = output(b"out") + output(b"err", stream=STDERR) + output(b"") + EXITED
    for byte in said:
        daemon.received(bytes([byte]))
    assert not daemon.lost
    assert await job.stdout.receive() == b"out"
    assert await job.stderr.receive() == b"err"
    with pytest.raises(anyio.EndOfStream):
        await job.stdout.receive()
    assert await job.wait() == ExitStatus(7)


async def test_what_is_said_of_a_job_that_was_closed_is_passed_over() -> None:
    daemon = Daemon()
    await daemon.start({}).aclose()
    daemon.received(output(b"late") + EXITED)
    assert not daemon.lost


async def test_a_flood_of_complaints_is_kept_in_part() -> None:
    daemon = Daemon()
    for _ in range(100):
        daemon.complained(LARGEST)
    daemon.lose()
    with pytest.raises(anyio.BrokenResourceError) as caught:
        await daemon.begin()
    assert len(str(caught.value)) <= 4096
