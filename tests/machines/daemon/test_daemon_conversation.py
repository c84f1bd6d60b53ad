"""What the daemon in a machine says is not trusted."""

from __future__ import annotations

from contextlib import suppress

import anyio
import pytest

from vers_rlm_mcp.machines import ExitStatus
from vers_rlm_mcp.machines.daemon import Daemon
from vers_rlm_mcp.machines.daemon.guest import wire

LARGEST = b"x" * wire.CHUNK


def output(data: bytes, *, job: int = 1, stream: int = wire.STDOUT) -> bytes:
    return wire.encode(wire.DATA, job, stream, data)


def taken(size: int) -> bytes:
    return wire.encode(wire.TAKEN, 1, wire.STDIN, wire.NUMBER.pack(size))


EXITED = wire.encode(wire.EXIT, 1, payload=wire.STATUS.pack(7, 0))


@pytest.mark.parametrize(
    "said",
    [
        b"Welcome to Ubuntu 24.04 LTS\n" * 10,
        output(LARGEST + b"x"),
        output(b"of a job that never was", job=2),
        output(LARGEST) * (wire.WINDOW // wire.CHUNK + 1),
        output(b"") + output(b"after the end"),
        output(b"", stream=9),
        output(b"input", stream=wire.STDIN),
        taken(1),
        wire.encode(wire.TAKEN, 1, wire.STDIN, b"1"),
        EXITED + EXITED,
        wire.encode(wire.EXIT, 1, payload=b"seven"),
        wire.encode(wire.START, 1),
        wire.encode(99, 1),
    ],
    ids=[
        *("no frame", "too large", "unknown job", "over the window", "after the end"),
        *("unknown stream", "input from there", "taken what was not sent", "no number"),
        *("exits twice", "no status", "a start", "unknown kind"),
    ],
)
async def test_a_daemon_that_breaks_the_rules_is_not_heard_any_more(said: bytes) -> None:
    daemon = Daemon()
    job = daemon.start({})
    daemon.received(said)
    assert daemon.lost
    with anyio.fail_after(5):
        status = await job.wait()
        assert status in (None, ExitStatus(7))
        with suppress(anyio.BrokenResourceError):
            async for chunk in job.stdout:
                assert len(chunk) <= wire.WINDOW


async def test_frames_that_are_split_anywhere_are_put_together() -> None:
    daemon = Daemon()
    job = daemon.start({})
    said = output(b"out") + output(b"err", stream=wire.STDERR) + output(b"") + EXITED
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
    daemon.start({}).close()
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
