"""Machines and commits of one backend, each with a model of what it should hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import anyio
from explorer import Explorer
from subjects import tree_roots
from tree_model import Refused, Tree

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from subjects import Subject

    from vers_rlm_mcp.machines import Commit, Machine

HOLDING: Final = """
import os, socket, sys, time
{act}
print("ready", flush=True)
sys.stdin.read()
"""

HOLDERS: Final = {
    "directory": "os.chdir(sys.argv[1])",
    "file": "kept = open(sys.argv[1] + '.held', 'w')",
    "removed file": "p = sys.argv[1] + '.held'; kept = open(p, 'w'); os.unlink(p)",
    # By a short name: the address of a socket holds no more than 108 bytes.
    "socket": "os.chdir(os.path.dirname(sys.argv[1])); s = socket.socket(socket.AF_UNIX); "
    "s.bind(os.path.basename(sys.argv[1]) + '.%f' % time.time()); os.chdir('/')",
}
"""What programs hold in their hands that must not be taken from them by a snapshot."""

TOLERATED: Final = frozenset({"EPERM", "EOPNOTSUPP", "EINVAL"})
"""How attributes may be refused that are not for everyone to set."""


@dataclass(slots=True)
class Running:
    """A machine and the tree that it should have."""

    tree: Tree
    machine: Machine | None = None
    explorer: Explorer | None = None


class Lab:
    """Everything that was made, by its id."""

    def __init__(self, subject: Subject, state: Path) -> None:
        self.subject = subject
        self._state = state / subject.name
        self._backend = subject.open(self._state)
        self._roots = tree_roots(self._backend.capabilities)
        self._machines: dict[str, Running] = {}
        self._commits: dict[str, Tree] = {}

    def tree(self, machine_id: str) -> Tree:
        """What a machine should hold."""
        return self._machines[machine_id].tree

    async def create(self) -> str:
        """A fresh machine."""
        tree = Tree(len(self._roots), copies_up=self.subject.copies_up)
        return await self._add(await self._backend.create(), tree)

    async def change(self, machine_id: str, changes: Sequence[list[Any]]) -> None:
        """Make changes in a machine, and see that what they left is what they should have left."""
        explorer = await self._explorer(machine_id)
        outcomes, listing = await explorer.perform(changes)
        tree = self.tree(machine_id)
        for change, (error, copied) in zip(changes, outcomes, strict=True):
            _follow(tree, change, error, copied=copied)
        tree.compare(listing)

    async def snapshot(self, machine_id: str, held: str | None) -> str:
        """A commit, taken while a program holds something, or nothing does."""
        machine = await self._machine(machine_id)
        if held is None:
            commit = await machine.snapshot()
            self.tree(machine_id).freeze()
        else:
            commit = await self._snapshot_held(machine, HOLDERS[held])
        self._commits[commit.id] = self.tree(machine_id).copy()
        await self.change(machine_id, [])
        return commit.id

    async def _snapshot_held(self, machine: Machine, act: str) -> Commit:
        argv = ["python3", "-I", "-c", HOLDING.format(act=act), self._roots[0]]
        async with await machine.spawn(argv, cwd="/") as holder:
            assert await holder.stdout.receive() == b"ready\n"
            return await machine.snapshot()

    async def branch(self, machine_id: str, count: int) -> list[str]:
        """Copies of a machine."""
        machine = await self._machine(machine_id)
        branches = await machine.branch(count)
        self.tree(machine_id).freeze()
        await self.change(machine_id, [])
        return [await self._add(copy, self.tree(machine_id).copy()) for copy in branches]

    async def restore(self, commit_id: str) -> str:
        """A new machine from a commit."""
        tree = self._commits[commit_id].copy()
        return await self._add(await self._backend.restore(commit_id), tree)

    async def delete(self, machine_id: str) -> None:
        """Delete a machine, or one that this backend object has not seen yet."""
        running = self._machines.pop(machine_id)
        if running.explorer:
            await running.explorer.aclose()
        await self._backend.delete(machine_id)

    async def delete_commit(self, commit_id: str) -> None:
        """Delete a commit, whatever was made from it."""
        del self._commits[commit_id]
        await self._backend.delete_commit(commit_id)

    async def restart(self) -> None:
        """Let go of everything, as a server does that ends, and begin anew on the same state."""
        await self.aclose()
        self._backend = self.subject.open(self._state)

    async def finish(self) -> None:
        """See that all is still as it should be, delete it, and see that nothing is left."""
        for machine_id in list(self._machines):
            await self.change(machine_id, [])
            await self.delete(machine_id)
        for commit_id in list(self._commits):
            machine_id = await self.restore(commit_id)
            await self.delete_commit(commit_id)
            await self.change(machine_id, [])
            await self.delete(machine_id)
        assert not await self._backend.list()
        assert not await self._backend.commits()
        rests = [self._state / name for name in self.subject.rests]
        assert not [path for rest in rests for path in rest.iterdir()]

    async def clear(self) -> None:
        """Delete everything, also after an error."""
        with anyio.CancelScope(shield=True):
            await self.aclose()
            for info in await self._backend.list():
                await self._backend.delete(info.id)
            for commit in await self._backend.commits():
                await self._backend.delete_commit(commit.id)

    async def aclose(self) -> None:
        """End what runs."""
        for running in self._machines.values():
            if running.explorer:
                await running.explorer.aclose()
            running.machine = running.explorer = None
        await self._backend.aclose()

    async def _add(self, machine: Machine, tree: Tree) -> str:
        self._machines[machine.id] = Running(tree, machine)
        await self.change(machine.id, [])
        return machine.id

    async def _machine(self, machine_id: str) -> Machine:
        running = self._machines[machine_id]
        if running.machine is None:
            running.machine = await self._backend.attach(machine_id)
        return running.machine

    async def _explorer(self, machine_id: str) -> Explorer:
        running = self._machines[machine_id]
        if running.explorer is None:
            machine = await self._machine(machine_id)
            running.explorer = await Explorer.start(machine, self._roots)
        return running.explorer


def _follow(tree: Tree, change: list[Any], error: str | None, *, copied: bool) -> None:
    """Let the model go where the machine went; both must agree on whether that is possible."""
    name, *arguments = change
    if name == "setxattr" and not arguments[1].startswith("user.") and error in TOLERATED:
        return
    try:
        if name == "rename":
            tree.rename(*arguments, copied=copied)
        else:
            getattr(tree, name)(*arguments)
    except Refused:
        assert error, f"{change} should have been refused"
    else:
        assert not error, f"{change} was refused with {error}"
