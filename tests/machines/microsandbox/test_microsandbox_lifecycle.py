"""Machines that stand still, and machines whose time is over."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import anyio
from test_microsandbox_smoke import COUNT, RISES, delete_all, sh

from microvm.machines import open_microsandbox
from vers_rlm_mcp.machines.microsandbox import MicrosandboxBackend
from vers_rlm_mcp.machines.microsandbox.library import Library

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from vers_rlm_mcp.machines import Backend, Machine

LIFE_SECONDS = 20
SECONDS = 120


async def test_programs_of_a_paused_machine_resume_once_it_is_attached(backend: Backend) -> None:
    machine = await backend.create()
    try:
        await sh(machine, COUNT)
        await (await Library().package.Sandbox.get(machine.id)).pause()
        await until_it_rests(machine)
        await sh(await backend.attach(machine.id), RISES)
        assert (await machine.info()).running
    finally:
        await machine.delete()


async def test_a_machine_ends_when_its_time_is_over(
    tmp_path: Path,
    backend: Backend,  # skips where there is none
) -> None:
    config = replace(open_microsandbox(tmp_path).config, max_seconds=LIFE_SECONDS)
    async with MicrosandboxBackend(tmp_path, config) as limited:
        machine = await limited.create()
        try:
            await sh(machine, "sync")
            await until_it_rests(machine)
            await sh(await limited.attach(machine.id), "echo awake")
        finally:
            await machine.delete()
        assert await limited.list() == []


async def test_of_copies_and_commits_nothing_stays(backend: Backend) -> None:
    before = kept()
    machine = await backend.create()
    older, newer = await machine.snapshot(), await machine.snapshot()
    machines = [machine, await backend.restore(newer.id), *await machine.branch(2)]
    for commit in (newer, older):
        await backend.delete_commit(commit.id)
    for one in machines:
        await one.delete()
    assert kept() == before
    assert not (await Library().package.Storage.prune(dry_run=True)).entries


class Forgetful:
    """Snapshots of the package where no memory can be kept."""

    def __init__(self, package: Any) -> None:
        self.package = package

    def __getattr__(self, name: str) -> Any:
        return getattr(self.package.Snapshot, name)

    async def create(self, *names: str, full: bool = False, **options: Any) -> object:
        if full:
            raise self.package.MicrosandboxError("it is too large to be remembered")
        return await self.package.Snapshot.create(*names, **options)


async def test_where_memory_cannot_be_kept_a_commit_has_the_disk_and_says_so(
    open_backend: Callable[[], Backend], monkeypatch: pytest.MonkeyPatch
) -> None:
    package: Any = Library().package
    without_memory: Any = ModuleType("microsandbox")
    for name in dir(package):
        setattr(without_memory, name, getattr(package, name))
    without_memory.Snapshot = Forgetful(package)
    monkeypatch.setitem(sys.modules, "microsandbox", without_memory)
    async with open_backend() as backend:
        machine = await backend.create()
        try:
            await sh(machine, f"echo kept > /workspace/file; {COUNT}")
            commit = await machine.snapshot()
            assert commit.fidelity == "disk"
            assert "too large to be remembered" in commit.notes[0]
            restored = await backend.restore(commit.id)
            assert await sh(restored, "cat /workspace/file; ls /dev/shm") == "kept"
            await sh(machine, RISES)
        finally:
            await delete_all(backend)


def kept() -> set[Path]:
    """What the library has on disk of machines and commits."""
    home = Path(os.environ.get("MSB_HOME", "~/.microsandbox")).expanduser()
    return {*home.glob("sandboxes/*"), *home.glob("snapshots/*")}


async def until_it_rests(machine: Machine) -> None:
    with anyio.fail_after(SECONDS):
        while (await machine.info()).running:  # noqa: ASYNC110 - nobody tells
            await anyio.sleep(1)
