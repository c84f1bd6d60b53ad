"""A machine that runs: its record, its sandbox, and freezing it into a layer."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import anyio
from anyio import to_thread

from vers_rlm_mcp.errors import BackendUnavailable, MachineError, MachineFull, MachineGone

from ..daemon import parse_refusal, rest
from .records import new_id
from .sandbox import nonsense

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..daemon import Job
    from .records import MachineRecord
    from .sandbox import Sandbox
    from .store import Store


MERGE_LAYERS: Final = 100
"""Frozen layers below a machine that are made one: a failing look-up takes 4 µs for each."""

MAX_LAYERS: Final = 400
"""Frozen layers that a machine may have: the kernel takes 500."""

COPY_SECONDS: Final = 1800.0
"""How long copying a machine's layers may take: it stands still that long. Some 100 MB a second are
usual."""

NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
MAKE_ROOM: Final = "Make room on the host's disk: delete machines or commits that are not needed"

Keep = Callable[["Frozen"], None]
"""Writes down who needs the layers of a frozen machine. Called once, with the store locked."""


def not_made(error: OSError) -> MachineFull | BackendUnavailable:
    """Why a machine could not be made, or started again."""
    if error.errno in NO_ROOM:
        return MachineFull(f"No machine can be started: {error.strerror}. {MAKE_ROOM}.")
    return BackendUnavailable(f"A machine cannot be set up here: {error}.")


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
    """The descriptor that shows other servers that this machine is taken."""
    slots: frozenset[str]
    """The names of its writable directories."""
    _freezing: anyio.Lock = field(default_factory=anyio.Lock)
    """Held from before the machine is frozen until nothing of that is left to clean up."""
    gate: anyio.Lock = field(default_factory=anyio.Lock)
    """Held while something is started, and while the machine is frozen."""

    @property
    def machine_id(self) -> str:
        """The machine's id."""
        return self.record.id

    def check(self) -> Sandbox:
        """The sandbox. Raises MachineGone when it has ended."""
        if not self.sandbox.alive:
            raise MachineGone(f"Machine {self.machine_id} has ended; what ran on it is lost.")
        return self.sandbox

    async def start(self, request: Mapping[str, Any]) -> Job:
        """Start a job; while the machine is being frozen, wait for that first."""
        sandbox = self.check()
        async with self.gate:
            return sandbox.start(request)

    async def explain_loss(self) -> MachineError:
        """The error for what ran when PID 1 ended."""
        return MachineGone(f"Machine {self.machine_id} has ended; what ran on it is lost.")

    async def end(self) -> None:
        """Stop the machine; its files stay."""
        await self.sandbox.end()
        os.close(self.lock)

    async def freeze(self, store: Store, keep: Keep) -> None:
        """Turn what the machine has written into a layer, while it keeps running.

        Raises MachineFull when there is no room for what that takes.
        """
        sandbox = self.check()
        async with self._freezing:
            store.discard_copies(self.machine_id)
            try:
                merged = await self._merge()
                async with self.gate:
                    frozen = await _stop(sandbox, merged=merged)
                    try:
                        obstacle, slots = self._parse_freeze(frozen)
                        await self._freeze(store, keep, obstacle, slots, merged=merged)
                    finally:
                        with anyio.CancelScope(shield=True):
                            await sandbox.request("thaw")
            except BaseException as error:
                with anyio.CancelScope(shield=True):
                    # What was made in vain may be what has filled the disk.
                    async with store.locked():
                        store.discard_copies(self.machine_id)
                        store.drop_garbage()
                await to_thread.run_sync(store.empty_trash, abandon_on_cancel=True)
                if isinstance(error, OSError):
                    raise self._translate_freeze_error(error) from error
                raise

    async def _merge(self) -> bool:
        """Make one of the layers when they are many, unless nothing new will come of the freeze.

        They never change: nothing has to stop for it. Without room for it, some more will do.
        """
        count = len(self.record.layers)
        if count < MERGE_LAYERS or not await self.sandbox.request("changes"):
            return False
        try:
            await self._copy(merged=True)
        except MachineFull:
            if count >= MAX_LAYERS:
                raise
            return False
        return True

    async def _freeze(
        self, store: Store, keep: Keep, obstacle: str, slots: list[str], *, merged: bool
    ) -> None:
        if not slots:
            async with store.locked():
                self._keep(store, keep, Frozen(self.record.layers))
        elif obstacle:
            await self._copy(merged=False)
            await self._adopt(store, keep, obstacle, merged=merged)
        else:
            with anyio.CancelScope(shield=True):
                await self._switch(store, keep, slots, new_id() if merged else None)

    async def _switch(self, store: Store, keep: Keep, slots: list[str], merged: str | None) -> None:
        """Go on over what was written, as a frozen layer."""
        layer = new_id()
        async with store.locked():
            frozen = store.put(self.record, slots, layer, merged)
        try:
            await self.sandbox.request("switch", layer=layer, merged=[merged] if merged else [])
        except OSError:
            async with store.locked():
                store.take_back(frozen, slots)
            raise
        self.record = frozen
        async with store.locked():
            self._keep(store, keep, Frozen(frozen.layers))

    async def _adopt(self, store: Store, keep: Keep, obstacle: str, *, merged: bool) -> None:
        """Make a layer from the copy of what was written; the machine stays unchanged."""
        note = f"What was written since the last commit had to be copied: {obstacle}."
        layer, older = new_id(), self.record.layers
        async with store.locked():
            store.adopt(self.machine_id, layer)
            if merged:
                older = (new_id(),)
                store.adopt_merged(self.machine_id, older[0])
            self._keep(store, keep, Frozen((layer, *older), (note,)))

    def _keep(self, store: Store, keep: Keep, frozen: Frozen) -> None:
        """Record what uses the layers, unless machine and layers were deleted in the meantime."""
        if store.machine(self.machine_id) is None:
            raise MachineGone(f"Machine {self.machine_id} was deleted while it was frozen.")
        keep(frozen)

    async def _copy(self, *, merged: bool) -> None:
        """Have the machine copy its layers; see `guest.init`."""
        job = self.sandbox.daemon.start({"do": "copy", "merged": merged})
        try:
            with anyio.fail_after(COPY_SECONDS):
                report, status = await rest(job.report), await job.wait()
        except TimeoutError:
            raise MachineError(
                f"Machine {self.machine_id} could not be copied within {COPY_SECONDS:g} s. Delete "
                "what is not needed in it, or close files that are open for writing."
            ) from None
        finally:
            await job.aclose()
        if status is None:
            raise await self.explain_loss()
        if not status.ok:
            error = parse_refusal(report)
            reason = error.strerror if error else "the copying process was killed"
            raise MachineFull(
                f"Machine {self.machine_id} cannot be copied: {reason}. {MAKE_ROOM}, or close "
                "files that are open for writing in the machine."
            )

    def _translate_freeze_error(self, error: OSError) -> MachineError:
        if error.errno == errno.EFBIG:
            return MachineFull(
                f"Machine {self.machine_id} cannot be frozen: {error.strerror}. Frozen, that would "
                "fill it for good: delete files in it first."
            )
        if error.errno in NO_ROOM:
            return MachineFull(
                f"Machine {self.machine_id} cannot be frozen: {error.strerror}. {MAKE_ROOM}."
            )
        return MachineError(f"Machine {self.machine_id} cannot be frozen: {error}.")

    def _parse_freeze(self, frozen: Any) -> tuple[str, list[str]]:
        """The obstacle and the slots that the machine reports: nothing but slots of its base."""
        match frozen:
            case {"obstacle": str(obstacle), "slots": [*slots]} if self.slots.issuperset(slots):
                return obstacle, slots
            case _:
                raise nonsense()


async def _stop(sandbox: Sandbox, *, merged: bool) -> Any:
    """Freeze, even when cancelled, so that it is known whether to thaw."""
    with anyio.CancelScope(shield=True):
        return await sandbox.request("freeze", merged=merged)
    raise AssertionError("a shielded scope was left early")
