"""Calls that may wait for a lock, made without holding up the event loop."""

from __future__ import annotations

import fcntl
import os
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import anyio
from anyio import to_thread

from .files import LOCK_POLL_SECONDS, lock_timeout, open_lock, try_lock

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Make a call in a thread. Once begun it is awaited, even when cancelled."""
    return await to_thread.run_sync(partial(act, *args, **kwargs))


async def in_thread_anyway(act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Make a call in a thread, also when cancelled already: what it records must not be lost."""
    with anyio.CancelScope(shield=True):
        return await in_thread(act, *args, **kwargs)
    raise AssertionError("a shielded scope was left early")


@asynccontextmanager
async def locked_without_blocking(path: Path, seconds: float) -> AsyncGenerator[None]:
    """Do what `locked` does in an event loop."""
    descriptor = open_lock(path)
    try:
        deadline = anyio.current_time() + seconds
        while not try_lock(descriptor, fcntl.LOCK_EX):
            if anyio.current_time() > deadline:
                raise lock_timeout(path, seconds)
            await anyio.sleep(LOCK_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)
