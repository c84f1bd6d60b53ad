"""The base of backends whose machines run a daemon: connections and handles."""

# ruff: noqa: D102 - the methods promise what the interface's docstrings say

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from vers_rlm_mcp.errors import unknown_handle

from ..base import Backend, Commit, MachineInfo
from .link import DaemonLink, deleted
from .machine import DaemonMachine

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .client import Daemon


class DaemonBackend(Backend):
    """Makes and finds machines, and connects to daemons in them.

    A backend adds `create`, `restore`, `list`, `commits`, `delete`, `delete_commit`, and the three
    abstract methods below. For a machine that exists it returns `handle`, and for one that it
    deletes it calls `disconnect`. Running programs, transferring files and reconnecting are done
    here. A backend whose machines may be stopped overrides `attach` to start them.
    """

    def __init__(self) -> None:
        self.links: dict[str, DaemonLink] = {}
        """The links to machines that have handles, by machine id."""

    @abstractmethod
    async def connect(self, machine_id: str) -> Daemon:
        """Start a daemon in a machine, and return our end of it once it runs.

        Raises `MachineGone` if there is no such machine, else `MachineError`. `connect_process`
        does it for a daemon that a local program reaches.
        """

    @abstractmethod
    async def commit(self, machine_id: str, intent: str | None) -> Commit:
        """Take a commit of a machine. Raises `MachineGone`."""

    @abstractmethod
    async def branch(
        self, machine_id: str, count: int, labels: Mapping[str, str]
    ) -> Sequence[DaemonMachine]:
        """Make copies of a machine, all from one instant. Raises `MachineGone`."""

    async def info(self, machine_id: str) -> MachineInfo:
        """Describe a machine. Override it if `list` is slow. Raises `MachineGone`."""
        for info in await self.list():
            if info.id == machine_id:
                return info
        raise deleted(machine_id)

    async def attach(self, machine_id: str) -> DaemonMachine:
        known = [info.id for info in await self.list()]
        if machine_id not in known:
            raise unknown_handle("machine", machine_id, known)
        return self.handle(machine_id)

    def link(self, machine_id: str) -> DaemonLink:
        """The connection to a machine, which is made when it is first needed."""
        if machine_id not in self.links:
            self.links[machine_id] = DaemonLink(machine_id, self.connect, self.info)
        return self.links[machine_id]

    def handle(self, machine_id: str) -> DaemonMachine:
        """A handle on a machine."""
        link = self.link(machine_id)
        link.handles += 1
        return DaemonMachine(self, link)

    def release(self, machine_id: str) -> None:
        """Take back a handle; with the last one, the connection goes."""
        link = self.links.get(machine_id)
        if link:
            link.handles -= 1
            if link.handles <= 0:
                self.links.pop(machine_id).close()

    def disconnect(self, machine_id: str) -> None:
        """Cut the connection to a machine that was deleted."""
        if link := self.links.pop(machine_id, None):
            link.close(gone=True)

    async def aclose(self) -> None:
        while self.links:
            await self.links.popitem()[1].aclose()
