"""Merges named files of a machine into the machine that it was copied from."""

from __future__ import annotations

import errno
import posixpath
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import anyio

from vers_rlm_mcp.errors import MachineError, MachineFull, MergeConflict, PathRefused

from ..paths import WORKSPACE, check_path
from .changes import printable
from .guest_programs import Guest, Program, work_with

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from anyio.abc import TaskGroup

    from ..base import Machine

MAX_PATHS: Final = 100
"""Paths that may be named. A directory counts as one."""

MAX_ITEMS: Final = 20_000
"""Paths at and below the named ones. The host holds some 10 MB of them, three times."""

MAX_LISTED: Final = 20
"""Paths that an error names."""

LOOK_SECONDS: Final = 120.0
"""To read all named files once: some 50 GB on a local disk."""

CARRY_SECONDS: Final = 600.0
"""To transfer files: some 100 GB locally, 6 GB over a usual network."""

UNDO_SECONDS: Final = 5.0
"""To remove what was staged, when a transfer is aborted."""

REFUSED: Final = ("/dev", "/proc", "/sys")
"""File systems of the kernel."""

KINDS: Final = ("file", "directory", "symlink", "other")
MAX_MODE: Final = 0o7777

NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM})


@dataclass(frozen=True, slots=True)
class Item:
    """What is compared of a path. Equal items have the same content."""

    kind: str
    """``file``, ``directory``, ``symlink`` or ``other``."""
    mode: int
    detail: str
    """The digest of a file or the target of a symlink."""


@dataclass(frozen=True, slots=True)
class Digest:
    """The state of some paths of a machine at one time."""

    paths: tuple[str, ...]
    """The named paths, normalized, without those that lie in another one."""
    items: Mapping[str, Item]
    """Everything at and below them."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """The changes that give the parent the child's files, where the child has changed them."""

    drops: tuple[str, ...]
    puts: Mapping[str, Item]

    @property
    def changed(self) -> tuple[str, ...]:
        return tuple(sorted({*self.drops, *self.puts}))

    def files(self) -> list[str]:
        return [path for path, item in self.puts.items() if item.kind == "file"]

    def lines(self, tops: Sequence[str]) -> Iterator[tuple[object, ...]]:
        """The plan as the guest's `Transfer` reads it, directories before what is in them."""
        for top in tops:
            yield "top", top
            yield from (("drop", path) for path in self.drops if _is_within(path, top))
            for path, item in self.puts.items():
                if _is_within(path, top):
                    yield "put", path, item.kind, item.mode, item.detail


async def digest(machine: Machine, paths: Sequence[str]) -> Digest:
    """Digest these paths, with everything below those that are directories.

    Args:
        machine: The machine.
        paths: Files and directories, which need not exist. Relative ones begin at ``/workspace``.
            Symlinks among the directories above them are followed, others are not.

    Raises:
        PathRefused: A path is malformed, there are too many, or something cannot be read.
        MachineError: The machine has no Python, or it took too long.
    """
    tops = _tops(paths)
    program = Program(machine, "merge", "digest", {})

    async def act(guests: Sequence[Guest], _: TaskGroup) -> dict[str, Item]:
        (guest,) = guests
        await guest.send(*tops, ["end"])
        return await _items(guest, tops)

    return Digest(tops, await work_with([program], act, seconds=LOOK_SECONDS))


async def bring_back(child: Machine, parent: Machine, before: Digest) -> tuple[str, ...]:
    """Apply to the parent what the child has changed since both were the same.

    Files arrive byte for byte, with their permissions and holes, and symlinks as symlinks. What the
    child has removed is removed. What only the parent has changed stays. Owners, times and extended
    attributes are not transferred: new files belong to the user that runs programs in the parent.

    All contents are first staged beside their destinations. Then the parent is digested once more,
    and each file is renamed into place. Any error before that leaves the parent unchanged. During
    the renames a program may see some files new and some old, as a system error half-way would
    leave them, and what it writes to these files at that time is lost.

    Args:
        child: The machine whose changes are applied.
        parent: The machine that they are applied to.
        before: What `digest` returned for the child while it was the same as the parent.

    Returns:
        The paths that were changed in the parent, sorted.

    Raises:
        MergeConflict: Both have changed a path differently. Nothing was changed.
        PathRefused: A named path does not exist, or cannot be transferred, such as a socket.
        MachineFull: The parent has no room.
        MachineError: It took too long, or a file changed during the transfer.
    """
    after = await digest(child, before.paths)
    plan = await _plan_merge(before, after, parent)
    if not plan.changed:
        return ()
    token = secrets.token_hex(8)
    programs = [
        Program(child, "merge", "pack", {}),
        Program(parent, "merge", "unpack", {"token": token}),
    ]

    async def act(guests: Sequence[Guest], tasks: TaskGroup) -> None:
        packing, unpacking = guests
        try:
            tasks.start_soon(lambda: packing.send(*plan.files(), ["end"]))
            await unpacking.send(*plan.lines(before.paths), ["end"])
            await packing.forward(unpacking)
            await _expect(unpacking, "staged", parent, "Nothing was changed")
            if await _plan_merge(before, after, parent) != plan:
                raise MachineError(
                    f"Files of machine {parent.id} changed during the transfer, and so nothing was "
                    "merged. Try again when nothing writes to them."
                )
            await unpacking.send(["commit", token])
            await _expect(unpacking, "done", parent, "Some of them may be there already")
        finally:
            with anyio.move_on_after(UNDO_SECONDS, shield=True):
                await unpacking.close()
                await unpacking.has_succeeded()

    await work_with(programs, act, seconds=CARRY_SECONDS)
    return plan.changed


async def _plan_merge(before: Digest, after: Digest, parent: Machine) -> _Plan:
    """Plan the merge for the parent's present state. Raises `MergeConflict`."""
    now = await digest(parent, before.paths)
    for top in before.paths:
        if top not in before.items and top not in after.items:
            raise PathRefused(f"{printable(top)!r} cannot be carried over: there is no such path.")
    return _merge(before.items, after.items, now.items, before.paths, parent.id)


def _merge(
    before: Mapping[str, Item],
    after: Mapping[str, Item],
    now: Mapping[str, Item],
    tops: Sequence[str],
    where: str,
) -> _Plan:
    """Merge three ways, path by path."""
    theirs = {path for path in {*before, *after} if before.get(path) != after.get(path)}
    needed = {path for path in theirs if now.get(path) != after.get(path)}
    conflicts = {path for path in needed if now.get(path) != before.get(path)}
    merged = {**now, **{path: after[path] for path in needed & after.keys()}}
    for path in needed - after.keys():
        merged.pop(path, None)
    conflicts |= set(_without_directory(merged, tops))
    if conflicts:
        raise MergeConflict(
            f"These paths were changed in machine {where} in the meantime, and differently: "
            f"{_format_paths(sorted(conflicts))}. Nothing was carried over."
        )
    if others := [path for path in needed & after.keys() if after[path].kind == "other"]:
        raise PathRefused(
            "Only files, directories and symlinks can be carried over, not "
            f"{_format_paths(others)}."
        )
    drops = [p for p in needed & now.keys() if p not in after or _is_swapped(now[p], after[p])]
    return _Plan(
        tuple(sorted(drops)), {path: after[path] for path in sorted(needed & after.keys())}
    )


def _without_directory(items: Mapping[str, Item], tops: Sequence[str]) -> list[str]:
    """The paths that are not in a directory."""
    return [
        path
        for path in items
        if path not in tops
        and not ((above := items.get(posixpath.dirname(path))) and above.kind == "directory")
    ]


def _is_swapped(old: Item, new: Item) -> bool:
    """Whether just one is a directory, so that a rename cannot replace the other."""
    return (old.kind == "directory") != (new.kind == "directory")


async def _items(guest: Guest, tops: Sequence[str]) -> dict[str, Item]:
    """Receive the answer of the guest's `digest`: items within the named paths only."""
    items: dict[str, Item] = {}
    while (line := await guest.receive()) != ["end"]:
        match line:
            case [str(path), str(kind), int(mode), str(detail)] if (
                _is_plain(path, tops) and kind in KINDS and 0 <= mode <= MAX_MODE
            ):
                items[path] = Item(kind, mode, detail)
            case ["error", int(), str(text)]:
                raise PathRefused(f"What was named cannot be read: {printable(text)}.")
            case _:
                raise guest.nonsense()
        if len(items) > MAX_ITEMS:
            raise PathRefused(
                f"More than {MAX_ITEMS:,} files were named, directories with all that is in them; "
                "name fewer, or pack them into an archive."
            )
    if _without_directory(items, tops):
        raise guest.nonsense()
    return items


async def _expect(guest: Guest, word: str, machine: Machine, state: str) -> None:
    """Receive a word, or the error in its place."""
    match await guest.receive():
        case [said] if said == word:
            return
        case ["error", int(number), str(text)]:
            kind = MachineFull if number in NO_ROOM else MachineError
            raise kind(f"Cannot bring files into machine {machine.id}: {printable(text)}. {state}.")
        case _:
            raise guest.nonsense()


def _tops(paths: Sequence[str]) -> tuple[str, ...]:
    """The paths, normalized, without those that lie in another one."""
    plain = {posixpath.normpath(posixpath.join(WORKSPACE, path)) for path in paths}
    for path in plain:
        check_path(path)
        if any(_is_within(path, refused) for refused in REFUSED):
            raise PathRefused(f"{printable(path)!r} is the system's; name files of your own.")
    if "/" in plain or len(plain) > MAX_PATHS:
        raise PathRefused(f"Name single files and directories, at most {MAX_PATHS} of them.")
    return tuple(sorted(p for p in plain if not any(_is_within(p, q) for q in plain - {p})))


def _is_within(path: str, top: str) -> bool:
    return path == top or path.startswith(f"{top}/")


def _is_plain(path: str, tops: Sequence[str]) -> bool:
    """Whether a path is normalized, and at or below a named one."""
    return posixpath.normpath(path) == path and any(_is_within(path, top) for top in tops)


def _format_paths(paths: Sequence[str]) -> str:
    more = len(paths) - MAX_LISTED
    named = ", ".join(map(printable, paths[:MAX_LISTED]))
    return f"{named} and {more:,} more" if more > 0 else named
