"""The host's disk is full, at whatever point of a snapshot: the machine lives on."""

from __future__ import annotations

import os
import resource
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import pytest

from small_disk import MOST, Disk
from vers_rlm_mcp.errors import MachineFull
from vers_rlm_mcp.machines import Commit, Machine, read_bytes
from vers_rlm_mcp.machines.bubblewrap import BubblewrapBackend, running

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk"),
    pytest.mark.slow,
]

TRIES: Final = 40
"""A snapshot makes fewer files and fills fewer pages than that."""

CONTENT: Final = b"content" * 1000

Made = TypeVar("Made")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path)
    yield disk
    disk.unmount()


@pytest.mark.parametrize("kind", ["files", "pages"])
@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("merging", [False, True])
async def test_a_snapshot_without_room_leaves_all_as_it_was(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, *, kind: str, held: bool, merging: bool
) -> None:
    if merging:
        monkeypatch.setattr(running, "MERGE_LAYERS", 1)
        monkeypatch.setattr(running, "MAX_LAYERS", 1)
    async with BubblewrapBackend(disk.place) as backend:
        machine = await backend.create()
        await machine.write("/workspace/file", CONTENT)
        base = await machine.snapshot()
        await machine.write("/usr/local/other", CONTENT)
        refused = 0
        while await try_snapshot(disk, machine, kind, refused, held=held) is None:
            refused += 1
            assert await backend.commits() == [base]
            assert not disk.garbage()
            await expect(machine, refused - 1)
        assert 0 < refused < TRIES
        await expect(machine, refused)
    async with BubblewrapBackend(disk.place) as backend:
        await expect(await backend.attach(machine.id), refused)
        await expect(await backend.restore((await backend.commits())[1].id), refused)


async def try_snapshot(
    disk: Disk, machine: Machine, kind: str, free: int, *, held: bool
) -> Commit | None:
    """Take a snapshot with so much room; None when it was refused."""
    await machine.write("/workspace/number", b"%d" % free)
    async with await machine.spawn(["sleep", "1000"], cwd="/workspace" if held else "/"):
        return await attempt(machine.snapshot, disk, kind, free)


async def attempt(
    call: Callable[[], Awaitable[Made]], disk: Disk, kind: str, free: int
) -> Made | None:
    """Do something with so much room; None when it was refused."""
    disk.leave(kind, free)
    try:
        return await call()
    except MachineFull as error:
        told = str(error)
    finally:
        disk.release()
    assert "Make room on the host's disk" in told
    return None


async def expect(machine: Machine, number: int) -> None:
    """See that a machine holds what was written, and can be worked with."""
    assert await read_bytes(machine, "/workspace/file", length=MOST) == CONTENT
    assert await read_bytes(machine, "/usr/local/other", length=MOST) == CONTENT
    assert await read_bytes(machine, "/workspace/number", length=MOST) == b"%d" % number
    await machine.write("/workspace/new", b"new")


@pytest.mark.parametrize("kind", ["files", "pages"])
async def test_a_machine_without_room_is_refused_and_leaves_nothing(disk: Disk, kind: str) -> None:
    async with BubblewrapBackend(disk.place) as backend:
        base = await (await backend.create()).snapshot()
        refused = 0
        restore = partial(backend.restore, base.id)
        while (machine := await attempt(restore, disk, kind, refused)) is None:
            refused += 1
            assert len(list((disk.place / "bubblewrap" / "machines").iterdir())) == 1
        assert 0 < refused < TRIES
        await machine.write("/workspace/new", b"new")


async def test_machines_and_commits_can_be_deleted_without_room(disk: Disk) -> None:
    async with BubblewrapBackend(disk.place) as backend:
        stopped = await backend.create()
        commit = await stopped.snapshot()
    async with BubblewrapBackend(disk.place) as backend:
        running = await backend.create()
        disk.leave("files", 0)
        # On a full disk, others may take every page as soon as it is let go.
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
        try:
            await backend.delete(running.id)
            await backend.delete(stopped.id)
            await backend.delete_commit(commit.id)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert (await backend.list(), await backend.commits()) == ([], [])
    assert not disk.garbage()
    assert list((disk.place / "bubblewrap" / "machines").iterdir()) == []


@pytest.mark.parametrize("kind", ["files", "pages"])
async def test_a_full_data_directory_of_the_user_is_done_without(
    disk: Disk,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(disk.place))
    disk.leave(kind, 5)
    async with BubblewrapBackend(tmp_path_factory.mktemp("state")) as backend:
        machine = await backend.create()
        await machine.write("/workspace/file", CONTENT)
        assert await read_bytes(machine, "/workspace/file", length=MOST) == CONTENT
        await machine.delete()
