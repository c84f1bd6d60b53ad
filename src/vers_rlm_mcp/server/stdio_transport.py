"""MCP on standard input and output, for one client.

The end of the input, SIGTERM, SIGINT and SIGHUP end the server in the same way: the SDK sees the
input end and cancels the calls under way, machines are deleted, and the process ends. For that the
SDK reads from a pipe which this module feeds and can close: it reads in a thread, which nothing can
interrupt.
"""

from __future__ import annotations

import fcntl
import logging
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio

from .application import Application
from .mcp_server import create_server
from .signals import call_on_signal

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from vers_rlm_mcp.settings import Settings

logger = logging.getLogger(__name__)

CHUNK = 65_536
"""Bytes moved at a time: what a pipe holds on Linux."""

EXIT_SECONDS = 20.0
"""How long after the end of the input the process exits in any case. Clean-up is bounded below
that: this is for a client that is alive but no longer reads, for which the SDK would wait."""


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
    source, sink = _divert_input()
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call_on_signal, end_of_input.cancel)
            tasks.start_soon(_feed, source, sink, end_of_input)
            await server.run_stdio_async()
            tasks.cancel_scope.cancel()
    except* BrokenPipeError:
        logger.info("The client disconnected without closing its end first")


def _divert_input() -> tuple[int, int]:
    """Replace standard input by a pipe; return the original and the pipe's write end."""
    source = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 3)
    reader, sink = os.pipe()
    os.dup2(reader, 0, inheritable=False)
    os.close(reader)
    os.set_blocking(sink, False)
    return source, sink


async def _feed(source: int, sink: int, end_of_input: anyio.CancelScope) -> None:
    """Pass the input on until it ends or is cancelled, then ensure that the process exits."""
    try:
        with end_of_input:
            while data := await _read(source):
                await _write(sink, data)
    except BrokenPipeError:
        logger.debug("The server ended before its input")
    finally:
        os.close(sink)
    await anyio.sleep(EXIT_SECONDS)
    logger.error("The client does not read; exiting anyway")
    os._exit(1)


async def _read(source: int) -> bytes:
    try:
        await anyio.wait_readable(source)
    except PermissionError:
        await anyio.lowlevel.checkpoint()  # A regular file: it cannot be polled, and never blocks.
    return os.read(source, CHUNK)


async def _write(sink: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        await anyio.wait_writable(sink)
        rest = rest[os.write(sink, rest) :]
