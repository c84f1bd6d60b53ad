"""Brings named files of a machine into the one that it was copied from."""

from __future__ import annotations

import errno
import posixpath
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import anyio

from vers_rlm_mcp.errors import MachineError, MachineFull, MergeConflict, PathRefused

from ..paths import WORKSPACE, check_path
from .changes import shown
from .guest_programs import Guest, Program, work_with

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from anyio.abc import TaskGroup

    from ..base import Machine

MAX_PATHS: Final = 100
"""Paths that may be named; a directory is one of them, whatever is in it."""

MAX_ITEMS: Final = 20_000
"""Files at and below the named paths: the host holds some 10 MB of them, for three looks each."""

MAX_LISTED: Final = 20
"""Paths that an error names."""

LOOK_SECONDS: Final = 120.0
"""To read all named files once: some 50 GB that are at hand."""

CARRY_SECONDS: Final = 600.0
"""To bring files over: some 100 GB locally, 6 GB through a usual line."""

UNDO_SECONDS: Final = 5.0
"""To remove what was made ready, when a transfer is broken off."""

REFUSED: Final = ("/dev", "/proc", "/sys")
"""What is the kernel's."""

KINDS: Final = ("file", "directory", "symlink", "other")
MAX_MODE: Final = 0o7777

NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM})


@dataclass(frozen=True, slots=True)
class Item:
    """What counts of a path. Two that are equal have the same content."""

    kind: str
    """``file``, ``directory``, ``symlink`` or ``other``."""
    mode: int
    detail: str
    """A digest of a file's content, or a symlink's target."""


@dataclass(frozen=True, slots=True)
class Digest:
    """How certain paths were in a machine, at one time."""

    paths: tuple[str, ...]
    """As they were named, in their plain form, without those that lie in another."""
    items: Mapping[str, Item]
    """Everything at and below them."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """What makes the parent's files those of the child, where the child has changed them."""

    drops: tuple[str, ...]
    puts: Mapping[str, Item]

    @property
    def changed(self) -> tuple[str, ...]:
        return tuple(sorted({*self.drops, *self.puts}))

    def files(self) -> list[str]:
        return [path for path, item in self.puts.items() if item.kind == "file"]

    def lines(self, tops: Sequence[str]) -> Iterator[tuple[object, ...]]:
        """The plan as the guest's `Transfer` reads it: what is above comes first."""
        for top in tops:
            yield "top", top
            yield from (("drop", path) for path in self.drops if _is_within(path, top))
            for path, item in self.puts.items():
                if _is_within(path, top):
                    yield "put", path, item.kind, item.mode, item.detail


async def digest(machine: Machine, paths: Sequence[str]) -> Digest:
    """How these paths are now, with all that is below those that are directories.

    Args:
        machine: Where.
        paths: Files and directories, there or not; relative ones begin at the machine's working
            directory. Symlinks among the directories above them are followed, others are not.

    Raises:
        PathRefused: A path is none, there are too many, or something cannot be read.
        MachineError: The machine has no Python, or it took too long.
    """
    tops = _tops(paths)
    program = Program(machine, "merge", "digest", {})

    async def act(guests: Sequence[Guest], _: TaskGroup) -> dict[str, Item]:
        (guest,) = guests
        await guest.tell(*tops, ["end"])
        return await _items(guest, tops)

    return Digest(tops, await work_with([program], act, seconds=LOOK_SECONDS))


async def bring_back(child: Machine, parent: Machine, before: Digest) -> tuple[str, ...]:
    """Do to the parent's files what the child has done to its own since they were the same.

    Files arrive byte for byte, with their permissions and holes; symlinks as links. What the child
    has removed is removed. What only the parent has changed stays. Owners, times and extended
    attributes are not carried: what arrives belongs to who runs programs in the parent.

    All contents are first brought beside where they belong; then the parent is looked at once more,
    and then each file appears at once, by a rename, one after the other. So nothing is carried when
    anything is wrong before that. Who looks at the parent in that moment may see some new files and
    some old, as an error of the system half-way would leave them, and what a program of the parent
    writes in that very moment is lost.

    Args:
        child: The machine whose changes count.
        parent: The machine that gets them.
        before: What `digest` said of the child when it was still like the parent.

    Returns:
        The paths in the parent that are changed by it, sorted.

    Raises:
        MergeConflict: Both have changed a path, and not alike; nothing was carried.
        PathRefused: A named path is nowhere, or is what cannot be carried, such as a socket.
        MachineFull: The parent has no room.
        MachineError: It took too long, or a file changed meanwhile.
    """
    after = await digest(child, before.paths)
    plan = await _planned(before, after, parent)
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
            tasks.start_soon(lambda: packing.tell(*plan.files(), ["end"]))
            await unpacking.tell(*plan.lines(before.paths), ["end"])
            await packing.pour(unpacking)
            await _expect(unpacking, "staged", parent, "Nothing was changed")
            if await _planned(before, after, parent) != plan:
                raise MachineError(
                    f"Files of machine {parent.id} were changed while files were brought there, "
                    "and so none was. Try again when nothing writes them."
                )
            await unpacking.tell(["commit", token])
            await _expect(unpacking, "done", parent, "Some of them may be there already")
        finally:
            with anyio.move_on_after(UNDO_SECONDS, shield=True):
                await unpacking.close()
                await unpacking.ended_well()

    await work_with(programs, act, seconds=CARRY_SECONDS)
    return plan.changed


async def _planned(before: Digest, after: Digest, parent: Machine) -> _Plan:
    """What is to be done as the parent is now. Raises `MergeConflict`."""
    now = await digest(parent, before.paths)
    for top in before.paths:
        if top not in before.items and top not in after.items:
            raise PathRefused(f"{shown(top)!r} cannot be carried over: there is no such path.")
    return _plan(before.items, after.items, now.items, before.paths, parent.id)


def _plan(
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
    conflicts |= set(_homeless(merged, tops))
    if conflicts:
        raise MergeConflict(
            f"These paths were changed in machine {where} meanwhile, and differently: "
            f"{_listed(sorted(conflicts))}. Nothing was carried over."
        )
    if others := [path for path in needed & after.keys() if after[path].kind == "other"]:
        raise PathRefused(
            f"Only files, directories and symlinks can be carried over, not {_listed(others)}."
        )
    drops = [p for p in needed & now.keys() if p not in after or _is_swapped(now[p], after[p])]
    return _Plan(
        tuple(sorted(drops)), {path: after[path] for path in sorted(needed & after.keys())}
    )


def _homeless(items: Mapping[str, Item], tops: Sequence[str]) -> list[str]:
    """Paths whose directory is none."""
    return [
        path
        for path in items
        if path not in tops
        and not ((above := items.get(posixpath.dirname(path))) and above.kind == "directory")
    ]


def _is_swapped(old: Item, new: Item) -> bool:
    """Whether one is a directory and the other is not, so that no rename replaces it."""
    return (old.kind == "directory") != (new.kind == "directory")


async def _items(guest: Guest, tops: Sequence[str]) -> dict[str, Item]:
    """What is told by `digest` of the guest, all of it within the paths that were asked for."""
    items: dict[str, Item] = {}
    while (line := await guest.hear()) != ["end"]:
        match line:
            case [str(path), str(kind), int(mode), str(detail)] if (
                _is_plain(path, tops) and kind in KINDS and 0 <= mode <= MAX_MODE
            ):
                items[path] = Item(kind, mode, detail)
            case ["error", int(), str(text)]:
                raise PathRefused(f"What was named cannot be read: {shown(text)}.")
            case _:
                raise guest.nonsense()
        if len(items) > MAX_ITEMS:
            raise PathRefused(
                f"More than {MAX_ITEMS:,} files were named, directories with all that is in them; "
                "name fewer, or pack them into an archive."
            )
    if _homeless(items, tops):
        raise guest.nonsense()
    return items


async def _expect(guest: Guest, word: str, machine: Machine, state: str) -> None:
    """Hear one word, or why it is not said."""
    match await guest.hear():
        case [said] if said == word:
            return
        case ["error", int(number), str(text)]:
            kind = MachineFull if number in NO_ROOM else MachineError
            raise kind(f"Cannot bring files into machine {machine.id}: {shown(text)}. {state}.")
        case _:
            raise guest.nonsense()


def _tops(paths: Sequence[str]) -> tuple[str, ...]:
    """The paths in their plain form, without those that lie in another."""
    plain = {posixpath.normpath(posixpath.join(WORKSPACE, path)) for path in paths}
    for path in plain:
        check_path(path)
        if any(_is_within(path, refused) for refused in REFUSED):
            raise PathRefused(f"{shown(path)!r} is the system's; name files of your own.")
    if "/" in plain or len(plain) > MAX_PATHS:
        raise PathRefused(f"Name single files and directories, at most {MAX_PATHS} of them.")
    return tuple(sorted(p for p in plain if not any(_is_within(p, q) for q in plain - {p})))


def _is_within(path: str, top: str) -> bool:
    return path == top or path.startswith(f"{top}/")


def _is_plain(path: str, tops: Sequence[str]) -> bool:
    """Whether a path is at or below one that was asked for, and goes straight there."""
    return posixpath.normpath(path) == path and any(_is_within(path, top) for top in tops)


def _listed(paths: Sequence[str]) -> str:
    more = len(paths) - MAX_LISTED
    named = ", ".join(map(shown, paths[:MAX_LISTED]))
    return f"{named} and {more:,} more" if more > 0 else named
