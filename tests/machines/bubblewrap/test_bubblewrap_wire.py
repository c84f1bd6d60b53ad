"""What comes from a machine is believed in nothing."""

from __future__ import annotations

import contextlib
import os

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vers_rlm_mcp.errors import MachineGone
from vers_rlm_mcp.machines.bubblewrap.guest import wire
from vers_rlm_mcp.machines.bubblewrap.process import read_status
from vers_rlm_mcp.machines.bubblewrap.sandbox import check_reply
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
])  # fmt: skip
async def test_a_forged_status_is_no_status(fields: list[bytes]) -> None:
    stream = pipe_with(wire.frame(fields))
    with pytest.raises(MachineGone):
        await read_status(stream)
    await stream.aclose()


@pytest.mark.parametrize("fields", [[b"maybe"], [b"error"], [b"error", b"x", b"y"]])
def test_a_forged_reply_is_no_reply(fields: list[bytes]) -> None:
    with pytest.raises(MachineGone, match="no sense"):
        check_reply(fields)
