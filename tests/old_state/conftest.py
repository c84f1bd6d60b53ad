"""States that 782d823 left on the disk, for today's code to work with."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from clouds import PROGRAMS, thaw
from doors import Doors
from freezer import CLOUD, FACTS, unpack
from plays import Stage

import user_data  # noqa: F401  # pyright: ignore[reportUnusedImport]
from models.servers import OpenAIServer
from vers_emulator import Options, VersEmulator
from vers_rlm_mcp.machines.bubblewrap import BubblewrapBackend

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping


@dataclass(kw_only=True)
class OldState(Doors):
    """A state directory of an older version, with what that version said of it: see `make.py`."""

    facts: Mapping[str, Any]
    model: OpenAIServer

    @property
    def machines(self) -> Mapping[str, str]:
        return self.facts["machines"]

    @property
    def commits(self) -> Mapping[str, str]:
        return self.facts["commits"]

    @property
    def runs(self) -> Mapping[str, str]:
        return self.facts["runs"]

    @property
    def told(self) -> Mapping[str, Any]:
        return self.facts["told"]

    @property
    def kept(self) -> set[str]:
        """The machines that outlive their servers."""
        return {vm["id"] for vm in self.told["machines"]["vms"]}

    async def listed(self) -> dict[str, str]:
        """The states of all machines and commits, and what they come from."""
        lines = (await self.command("machines", "list")).splitlines()[1:]
        return {line.split()[0]: line.split(maxsplit=3)[3] for line in lines}


@pytest.fixture(params=["bubblewrap", "vers"])
async def old(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[OldState]:
    async with _thawed(request.param, tmp_path) as state:
        yield state


@pytest.fixture
async def old_vers(tmp_path: Path) -> AsyncIterator[OldState]:
    async with _thawed("vers", tmp_path) as state:
        yield state


@pytest.fixture
async def old_bubblewrap(tmp_path: Path) -> AsyncIterator[OldState]:
    async with _thawed("bubblewrap", tmp_path) as state:
        yield state


@asynccontextmanager
async def _thawed(backend: str, home: Path) -> AsyncGenerator[OldState]:
    unpack(Path(__file__).with_name(f"{backend}.tar.xz"), home)
    facts = json.loads((home / FACTS).read_text())
    settings = {"VERS_RLM_BACKEND": "bubblewrap"}
    async with AsyncExitStack() as stack:
        model = await stack.enter_async_context(OpenAIServer(Stage(hanging=False).answer))
        if backend == "vers":
            emulator = await stack.enter_async_context(_service(home, facts))
            settings = emulator.facts()["environment"]
        yield OldState(home=home, model_url=model.url, settings=settings, facts=facts, model=model)


@asynccontextmanager
async def _service(home: Path, facts: Mapping[str, Any]) -> AsyncGenerator[VersEmulator]:
    """A service that has the machines and commits of the frozen one."""
    kept = [vm["id"] for vm in facts["told"]["machines"]["vms"]]
    async with (
        VersEmulator(home / CLOUD, Options(fork_kernels=True)) as emulator,
        BubblewrapBackend(home / CLOUD) as machines,
    ):
        cloud = emulator.cloud
        await thaw(cloud, machines, facts["cloud"], home / PROGRAMS, with_kernels=kept)
        yield emulator
        # Their files go with the test's directory; to remove them one by one would take seconds.
        cloud.vms, cloud.commits = {}, {}
