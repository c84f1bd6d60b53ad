"""What is found, and what is brought over, is what a plain comparison of listings says."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING

import pytest
from trees import TREE, Listing, below, grow, listing

from vers_rlm_mcp.errors import MergeConflict
from vers_rlm_mcp.machines.differences import bring_back, diff, digest

if TYPE_CHECKING:
    from trees import Pair

    from vers_rlm_mcp.machines import Backend
    from vers_rlm_mcp.machines.differences import Entry

pytestmark = pytest.mark.slow

ROUNDS = 3


async def test_every_difference_of_random_trees_is_found_and_no_other(
    twins: Pair,
) -> None:
    first, second = twins
    for seed in range(ROUNDS):
        old, new = await grow(first, 10 + seed, 12), await grow(second, 20 + seed, 12)
        found = await diff(first, second, roots=[TREE], max_entries=10_000)
        told: dict[str, tuple[bool, bool]] = {}
        for change in found.files:
            path = posixpath.relpath(change.path, TREE)
            whole = old if change.old and change.old.kind == "directory" else new
            swapped = [path, *(below(whole, path) if change.below else ())]
            assert len(swapped) == 1 + change.below
            told |= dict.fromkeys(swapped, (change.old is not None, change.new is not None))
            assert _fits(change.old, old.get(path))
            assert _fits(change.new, new.get(path))
        told.pop(".", None)
        differing = {path for path in {*old, *new} if old.get(path) != new.get(path)}
        assert told.keys() == differing
        assert {path for path, sides in told.items() if sides == (True, False)} == (
            old.keys() - new.keys()
        )
        assert sum(found.counts[kind] for kind in ("added", "removed", "changed")) == len(told)


def _fits(entry: Entry | None, facts: list[object] | None) -> bool:
    if entry is None or facts is None:
        return entry is facts
    kind, mode, target = facts
    return entry.kind.replace("sym", "") == kind and (
        entry.target == target if kind == "link" else entry.mode & 0o7777 == mode
    )


@pytest.mark.parametrize("apart", [True, False])
async def test_random_changes_are_merged_path_by_path_or_not_at_all(
    everywhere: Backend, apart: bool
) -> None:
    parent = await everywhere.create()
    merged = conflicts = 0
    for seed in range(ROUNDS):
        await grow(parent, 100 + seed, 30)
        (child,) = await parent.branch()
        before, base = await digest(child, ["tree"]), await listing(child)
        theirs = await grow(child, 200 + seed, 8)
        # Apart, the parent changes something else; else the two are likely to meet.
        await grow(parent, 300 + seed, 8, f"{TREE}/ours{seed}" if apart else TREE)
        ours = await listing(parent)
        wanted = _merged(base, theirs, ours)
        try:
            changed = await bring_back(child, parent, before)
        except MergeConflict:
            assert wanted is None
            assert await listing(parent) == ours
            conflicts += 1
        else:
            assert wanted is not None
            assert await listing(parent) == wanted
            assert len(changed) == sum(
                wanted.get(path) != ours.get(path) for path in {*wanted, *ours}
            )
            merged += 1
        await child.delete()
    await parent.delete()
    assert merged >= (ROUNDS if apart else 1)
    assert conflicts >= (0 if apart else 1)


def _merged(base: Listing, theirs: Listing, ours: Listing) -> Listing | None:
    """What a merge should leave; None where it must be refused."""
    result = dict(ours)
    for path in {*base, *theirs}:
        if base.get(path) == theirs.get(path) or ours.get(path) == theirs.get(path):
            continue
        if ours.get(path) != base.get(path):
            return None
        result.pop(path, None)
        if path in theirs:
            result[path] = theirs[path]
    homes = {path for path, facts in result.items() if facts[0] == "directory"} | {""}
    return result if all(posixpath.dirname(path) in homes for path in result) else None
