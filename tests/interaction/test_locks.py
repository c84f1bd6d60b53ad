"""What another process holds locked delays only the calls that need it, and with an end."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING

import anyio
import pytest
import users

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

ANSWER_SECONDS = 2
"""A list of tools takes milliseconds; this computer may be busy."""


@contextmanager
def locked_ledger(state: Path) -> Generator[None]:
    database = sqlite3.connect(state / "ledger.sqlite3", isolation_level=None)
    database.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        database.close()


@contextmanager
def locked_store(state: Path) -> Generator[None]:
    descriptor = os.open(state / "bubblewrap" / "lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


@pytest.mark.slow
@pytest.mark.parametrize("lock", [locked_ledger, locked_store])
async def test_a_lock_of_another_process_holds_up_no_one_else(tmp_path: Path, lock: object):
    async with users.user(tmp_path) as user:
        await user.exec("true")
        said: list[str] = []
        with lock(user.state):  # pyright: ignore
            async with anyio.create_task_group() as tasks:

                async def make() -> None:
                    said.append(await user.error("vmCreate"))

                tasks.start_soon(make)
                while not said:
                    with anyio.fail_after(ANSWER_SECONDS):
                        await user.client.list_tools()
                    await anyio.sleep(0.1)  # the call is to wait meanwhile
            assert "locked" in said[0]
            assert "try again, or end that process" in said[0]
        await user.exec("true")
