"""Files that a copy of a machine has made, changed or removed come back to where it came from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest
from trees import done, sh

from vers_rlm_mcp.errors import MachineError, MachineFull, MergeConflict, PathRefused
from vers_rlm_mcp.machines import MachineSpec
from vers_rlm_mcp.machines.differences import bring_back, digest, merging

if TYPE_CHECKING:
    from trees import Pair

    from vers_rlm_mcp.machines.bubblewrap import BubblewrapBackend


@pytest.fixture
async def family(pair: Pair) -> Pair:
    """A child and its parent."""
    return pair[1], pair[0]


async def carried(family: Pair, paths: list[str], child: str, parent: str = "") -> tuple[str, ...]:
    """What comes of two scripts, one in each, after a moment when they were the same."""
    before = await digest(family[0], paths)
    await sh(family[0], f":\n{child}")
    await sh(family[1], f":\n{parent}")
    return await bring_back(*family, before)


async def test_files_links_and_modes_arrive_and_removals_too(family: Pair) -> None:
    both = "mkdir d; echo a > d/a; echo b > d/b; echo c > d/c; ln -s a d/link; echo o > other"
    for machine in family:
        await sh(machine, both)
    change = """
        echo new > d/a; rm d/b; chmod 4700 d/c; ln -sfn no d/link; mkdir -p d/x/y; chmod 500 d/x
        printf 'one\\0\\377' > d/x/y/z; echo changed > other"""
    changed = await carried(
        family, ["d", "new/deep/file"], f"{change}; mkdir -p new/deep; echo > new/deep/file"
    )
    assert changed == (
        *("/workspace/d/a", "/workspace/d/b", "/workspace/d/c", "/workspace/d/link"),
        *("/workspace/d/x", "/workspace/d/x/y", "/workspace/d/x/y/z", "/workspace/new/deep/file"),
    )
    look = "cat other; find d new -printf '%p %M %l\\n' | sort; cat d/a; od -c d/x/y/z"
    assert (await sh(family[1], look)).partition("\n")[2] == (
        (await sh(family[0], look)).partition("\n")[2]
    )
    assert await sh(family[1], "cat other") == "o\n"


async def test_nothing_changed_is_nothing_to_do(family: Pair) -> None:
    for machine in family:
        await sh(machine, "echo x > f")
    assert await carried(family, ["f"], "touch f", "echo mine > f") == ()
    assert await sh(family[1], "cat f") == "mine\n"


async def test_a_conflict_names_the_files_and_nothing_is_carried(family: Pair) -> None:
    for machine in family:
        await sh(
            machine, "mkdir d; echo 1 > d/both; echo 1 > d/same; echo 1 > d/gone; echo 1 > d/ours"
        )
    with pytest.raises(MergeConflict) as caught:
        await carried(
            family,
            ["d"],
            "echo 2 > d/both; echo 2 > d/same; rm d/gone; echo 2 > d/new",
            "echo 3 > d/both; echo 2 > d/same; echo 3 > d/gone; echo 3 > d/ours",
        )
    text = str(caught.value)
    assert "/workspace/d/both, /workspace/d/gone. " in text
    assert "ours" not in text
    assert "Nothing was carried" in text
    assert await sh(family[1], "cd d; grep . *") == "both:3\ngone:3\nours:3\nsame:2\n"


async def test_a_directory_removed_here_and_filled_there_is_a_conflict(family: Pair) -> None:
    for machine in family:
        await sh(machine, "mkdir d; echo 1 > d/f")
    with pytest.raises(MergeConflict, match="/workspace/d/mine"):
        await carried(family, ["d"], "rm -r d", "echo mine > d/mine")
    for machine in family:
        await sh(machine, "rm -rf d; mkdir d; echo 1 > d/f")
    with pytest.raises(MergeConflict, match="/workspace/d/theirs"):
        await carried(family, ["d"], "echo > d/theirs", "rm -r d")


async def test_a_conflict_that_comes_while_files_are_carried_is_found(family: Pair) -> None:
    child, parent = family
    before = await digest(child, ["big", "f"])
    await sh(child, "head -c 30000000 /dev/urandom > big; echo child > f")
    # It is written as soon as the first file is being made ready.
    wait = "until ls -A | grep -q .vers-rlm-; do :; done; echo parent > f"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sh, parent, wait)
        with pytest.raises(MergeConflict, match="/workspace/f"):
            await bring_back(child, parent, before)
    assert await sh(parent, "ls -A; cat f") == "f\nparent\n"


async def test_cancelling_leaves_nothing_behind(family: Pair) -> None:
    child, parent = family
    before = await digest(child, ["big"])
    await sh(child, "head -c 60000000 /dev/urandom > big")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bring_back, child, parent, before)
        with anyio.fail_after(20):
            await sh(parent, "until ls -A | grep -q .vers-rlm-; do :; done")
        tasks.cancel_scope.cancel()
    assert await sh(parent, "ls -A") == ""


async def test_a_parent_without_room_stays_as_it_was(
    family: Pair, backend: BubblewrapBackend
) -> None:
    child, _ = family
    parent = await backend.create(MachineSpec(fs_size_mib=64))
    before = await digest(child, ["f", "g"])
    await sh(child, "head -c 100000000 /dev/urandom > g; echo > f")
    with pytest.raises(MachineFull, match=f"bring files into machine {parent.id}"):
        await bring_back(child, parent, before)
    assert await sh(parent, "ls -A") == ""
    await parent.delete()


async def test_a_link_in_the_parent_is_replaced_and_not_followed(family: Pair) -> None:
    for machine in family:
        await sh(machine, "mkdir d elsewhere; echo safe > elsewhere/f; ln -s ../elsewhere d/l")
    await carried(family, ["d"], "rm d/l; mkdir d/l; echo child > d/l/f; ln -s /etc d/e")
    assert await sh(family[1], "cat elsewhere/f d/l/f; readlink d/e") == "safe\nchild\n/etc\n"


async def test_a_directory_becomes_a_file_and_the_reverse(family: Pair) -> None:
    for machine in family:
        await sh(machine, "mkdir -p a/b; echo > a/b/c; echo > f")
    await carried(family, ["a", "f"], "rm -r a f; echo file > a; mkdir f; echo in > f/in")
    assert await sh(family[1], "cat a f/in") == "file\nin\n"


async def test_a_great_hole_stays_one(family: Pair) -> None:
    with anyio.fail_after(20):
        await carried(family, ["big"], "truncate -s 6G big; printf end >> big")
    assert await sh(
        family[1], "tail -c 3 big; stat -c ' %s' big; [ $(stat -c %b big) -lt 9000 ]"
    ) == (f"end {(6 << 30) + 3}\n")


async def test_odd_names_arrive(family: Pair) -> None:
    names = "(b'\\xff', b'a\\nb', b'-', b'x' * 255)"
    script = f"for n in {names}: open(b'd/' + n, 'w').write('x')"
    before = await digest(family[0], ["d"])
    await done(family[0], "python3", "-c", f"import os; os.mkdir('d')\n{script}")
    assert len(await bring_back(*family, before)) == 5
    assert await sh(family[1], "ls d | wc -l; cat d/*") == "5\nxxxx"


@pytest.mark.parametrize(
    ("paths", "match"),
    [
        (["/"], "single files"),
        (["/proc/self"], "system"),
        (["../dev/null"], "system"),
        (["a\0b"], "absolute"),
        ([str(number) for number in range(101)], "at most 100"),
        (["nowhere"], "'/workspace/nowhere' cannot be carried over: there is no such path"),
    ],
)
async def test_what_cannot_be_named_is_refused(family: Pair, paths: list[str], match: str) -> None:
    with pytest.raises(PathRefused, match=match):
        await carried(family, paths, "")


async def test_a_socket_or_a_fifo_is_refused_by_name(family: Pair) -> None:
    with pytest.raises(PathRefused, match="not /workspace/d/fifo"):
        await carried(family, ["d"], "mkdir d; mkfifo d/fifo")


async def test_too_many_files_are_refused(family: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "MAX_ITEMS", 10)
    with pytest.raises(PathRefused, match="More than 10 files"):
        await carried(family, ["d"], "mkdir d; touch $(seq -f d/%g 11)")


async def test_a_file_that_changes_all_the_time_is_not_carried(family: Pair) -> None:
    child, parent = family
    before = await digest(child, ["f"])
    await sh(
        child,
        "setsid sh -c 'while :; do date +%N > g; mv g f; done' > /dev/null 2>&1 &"
        "until [ -e f ]; do :; done",
    )
    with pytest.raises(MachineError, match="changed while it was carried"):
        await bring_back(child, parent, before)
    assert await sh(parent, "ls -A") == ""
