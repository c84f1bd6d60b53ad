"""A machine that runs: its record, its sandbox, and freezing it into a layer."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import anyio

from vers_rlm_mcp.errors import MachineError, MachineFull, MachineGone

from .sandbox import check_reply
from .store import new_id
from .streams import Pipes, read_reply

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .sandbox import Sandbox
    from .store import MachineRecord, Store


MAX_LAYERS: Final = 200
"""Frozen layers below a machine: overlayfs takes 500, and each makes a failing look-up slower."""

COPY_KILLED: Final = [b"error", b"12", b"the copying process was killed"]

Keep = Callable[["Frozen"], None]
"""Writes down who needs the layers of a frozen machine. Called once, with the store locked."""


@dataclass(frozen=True, slots=True)
class Frozen:
    """What a machine was at one instant."""

    layers: tuple[str, ...]
    """Newest first."""
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class RunningMachine:
    """A machine that this process runs, shared by all handles on it."""

    record: MachineRecord
    sandbox: Sandbox
    lock: int
    """The descriptor that tells other servers that this machine is taken."""
    slots: frozenset[str]
    """The names of its writable directories."""
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    gate: anyio.Lock = field(default_factory=anyio.Lock)
    """Held while something is started, and while the machine is frozen."""

    @property
    def id(self) -> str:
        """The machine's id."""
        return self.record.id

    def check(self) -> Sandbox:
        """The sandbox. Raises MachineGone when it has ended."""
        if not self.sandbox.alive:
            raise MachineGone(f"Machine {self.id} has ended; what ran on it is lost.")
        return self.sandbox

    async def end(self) -> None:
        """Stop the machine; its files stay."""
        await self.sandbox.end()
        os.close(self.lock)

    async def freeze(self, store: Store, keep: Keep) -> None:
        """Turn what the machine has written into a layer, while it goes on.

        Raises MachineFull when a copy is needed and there is no room for it.
        """
        sandbox = self.check()
        async with self.gate:
            try:
                obstacle, *names = await _stop(sandbox) or [b""]
                try:
                    await self._freeze(store, keep, obstacle, [self._slot(name) for name in names])
                finally:
                    with anyio.CancelScope(shield=True):
                        await sandbox.request(b"thaw")
            except OSError as error:
                raise MachineError(f"Machine {self.id} cannot be frozen: {error}.") from error

    async def _freeze(self, store: Store, keep: Keep, obstacle: bytes, slots: list[str]) -> None:
        if not slots:
            with store.locked():
                keep(Frozen(self.record.layers))
        elif len(self.record.layers) >= MAX_LAYERS:
            note = f"Everything was copied: more than {MAX_LAYERS} commits lay below it."
            await self._copy(store, keep, (), note)
        elif obstacle:
            reason = obstacle.decode(errors="replace")
            note = f"What was written since the last commit had to be copied: {reason}."
            await self._copy(store, keep, self.record.layers, note)
        else:
            with anyio.CancelScope(shield=True):
                await self._switch(store, keep, slots)

    async def _switch(self, store: Store, keep: Keep, slots: list[str]) -> None:
        """Go on over what was written, as a frozen layer."""
        layer = new_id()
        with store.locked():
            frozen = store.put(self.record, slots, layer)
        try:
            await self.sandbox.request(b"switch", [layer.encode()])
        except OSError:
            with store.locked():
                store.take_back(frozen, slots)
            raise
        self.record = frozen
        with store.locked():
            keep(Frozen(frozen.layers))

    async def _copy(self, store: Store, keep: Keep, below: tuple[str, ...], note: str) -> None:
        """Copy what was written over the layers `below`; the machine stays as it is."""
        store.discard_copy(self.id)
        try:
            await self._make_copy(whole=not below)
        except BaseException:
            store.discard_copy(self.id)
            raise
        layer = new_id()
        with store.locked():
            store.adopt(self.id, layer)
            keep(Frozen((layer, *below), (note,)))

    async def _make_copy(self, *, whole: bool) -> None:
        with Pipes() as pipes:
            status, report = pipes.incoming(), pipes.incoming()
            child = await self.sandbox.request(b"copy", [b"whole"] * whole, pipes.theirs)
        try:
            check_reply(await read_reply(report) or COPY_KILLED)
        except OSError as error:
            raise MachineFull(
                f"Machine {self.id} cannot be copied: {error.strerror}. Make room on the host's "
                "disk, or close files that are open for writing in the machine."
            ) from error
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.sandbox.request(b"kill", child[:1])
            raise
        finally:
            status.close()
            report.close()

    def _slot(self, name: bytes) -> str:
        """The name of a slot that the machine told; only those of its base are believed."""
        slot = name.decode(errors="replace")
        if slot not in self.slots:
            raise MachineGone(f"Machine {self.id} tells nonsense; delete it.")
        return slot


async def _stop(sandbox: Sandbox) -> list[bytes]:
    """Freeze, even when cancelled, so that it is known whether to thaw."""
    with anyio.CancelScope(shield=True):
        return await sandbox.request(b"freeze")
    raise AssertionError("a shielded scope was left early")
