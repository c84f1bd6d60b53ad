"""MCP on standard input and output, for one client.

The end of the input, SIGTERM, SIGINT and SIGHUP end the server in the same way: the connection's
input ends, which cancels the calls under way, machines are deleted, and the process ends. The SDK's
own transport reads in a thread, which nothing can interrupt, and does not answer what it cannot
parse.
"""

from __future__ import annotations

import fcntl
import logging
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import anyio
from anyio import to_thread
from mcp.shared.message import SessionMessage

from .application import Application
from .mcp_server import create_server
from .signals import call_on_signal
from .wire import (
    EDGE_BYTES,
    MAX_MESSAGE_BYTES,
    Refusal,
    read_message,
    refuse_length,
    write_message,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
    from mcp_types import JSONRPCMessage

    from vers_rlm_mcp.settings import Settings

    Received = MemoryObjectSendStream[SessionMessage | Exception]
    Sent = MemoryObjectSendStream[SessionMessage | Refusal]

logger = logging.getLogger(__name__)

CHUNK: Final = 65_536
"""Bytes read at a time: what a pipe holds on Linux."""

EXIT_SECONDS: Final = 20.0
"""How long after the end of the input the process exits in any case. Clean-up is bounded below
that: this is for a client that is alive but no longer reads, for which the last write waits."""


async def serve_stdio(settings: Settings) -> None:
    """Serve the client on standard input and output until it disconnects.

    Returns after clean-up, once the input has ended or a signal told the process to stop. Standard
    output carries only the protocol; whatever else this process prints goes to standard error.
    """
    end_of_input = anyio.CancelScope()

    @asynccontextmanager
    async def lifespan(_: object) -> AsyncGenerator[Application]:
        # The SDK exits this before it waits for the last writes, so that machines are deleted even
        # if the client no longer reads.
        try:
            async with app:
                yield app
        finally:
            end_of_input.cancel()

    app = Application(settings, one_client=True)
    server = create_server(app, lifespan=lifespan)
    source, sink = _take_descriptors()
    received, to_serve = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    sent, to_write = anyio.create_memory_object_stream[SessionMessage | Refusal](0)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call_on_signal, end_of_input.cancel)
            tasks.start_soon(_read_all, source, received, sent.clone(), end_of_input)
            async with anyio.create_task_group() as writing:
                writing.start_soon(_write_all, sink, to_write)
                async with sent:
                    await server.serve(to_serve, sent)
            tasks.cancel_scope.cancel()
    except* (BrokenPipeError, anyio.BrokenResourceError):
        logger.info("The client disconnected without closing its end first")


def _take_descriptors() -> tuple[int, int]:
    """Keep standard input and output for the protocol; return where they are now.

    Programs that this process starts inherit an empty input, and standard error as output.
    """
    source, sink = (fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 3) for number in (0, 1))
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    try:
        os.dup2(2, 1)
    except OSError:  # started without a standard error
        os.dup2(0, 1)
    return source, sink


async def _read_all(
    source: int, received: Received, sent: Sent, end_of_input: anyio.CancelScope
) -> None:
    """Pass messages on until the input ends or is cancelled, then ensure that the process exits."""
    async with received, sent:
        with end_of_input:
            async for message in _messages(source):
                if isinstance(message, tuple):
                    for refusal in message:
                        await sent.send(refusal)
                else:
                    await received.send(SessionMessage(message))
    await anyio.sleep(EXIT_SECONDS)
    logger.error("The client does not read; exiting anyway")
    logging.shutdown()
    os._exit(1)


async def _messages(source: int) -> AsyncGenerator[JSONRPCMessage | tuple[Refusal, ...]]:
    """What the input contains, line by line. Of a line that is too long, the edges are kept."""
    parts, size = [b""], 0
    while data := await _read(source):
        *lines, rest = data.split(b"\n")
        for line in lines:
            yield _message([*parts, line], size + len(line))
            parts, size = [b""], 0
        parts.append(rest)
        size += len(rest)
        if size > MAX_MESSAGE_BYTES:
            whole = b"".join(parts)
            parts = [whole[:EDGE_BYTES], whole[-EDGE_BYTES:]]
    yield _message(parts, size)


def _message(parts: list[bytes], size: int) -> JSONRPCMessage | tuple[Refusal, ...]:
    line = b"".join(parts)
    if size > MAX_MESSAGE_BYTES + 1:  # with a carriage return
        return (refuse_length(line[:EDGE_BYTES], line[-EDGE_BYTES:]),)
    return read_message(line)


async def _read(source: int) -> bytes:
    try:
        await anyio.wait_readable(source)
    except PermissionError:
        await anyio.lowlevel.checkpoint()  # A regular file: it cannot be polled, and never blocks.
    return os.read(source, CHUNK)


async def _write_all(
    sink: int, to_write: MemoryObjectReceiveStream[SessionMessage | Refusal]
) -> None:
    async with to_write:
        async for item in to_write:
            line = item.encode() if isinstance(item, Refusal) else write_message(item.message)
            # In a thread, since the client may read slowly.
            await to_thread.run_sync(_write, sink, line + b"\n")


def _write(sink: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(sink, rest) :]
