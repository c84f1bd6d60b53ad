"""What a machine promises about snapshots, branches and restored machines."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Final

import anyio

from vers_rlm_mcp.errors import UnknownHandle
from vers_rlm_mcp.machines import run_command

from . import manifest
from .lab import (
    COMMAND_SECONDS,
    Lab,
    check,
    check_if,
    content,
    expect,
    expect_equal,
    expect_error,
    is_running,
    memory,
    sh,
)

if TYPE_CHECKING:
    from vers_rlm_mcp.machines import Commit, Machine, Process

STATE: Final = "/workspace/state"

CHAIN: Final = 20
"""Commits in a row: more than users make, and more than some overlays can stack."""

FIRST_STAGE: Final = """
mkdir -p tree/empty tree/moved/inner tree/gone tree/becomes-file; cd tree
echo one > plain; ln plain hard; ln -s plain soft; ln -s /nowhere dangling
echo x > moved/inner/file; echo y > gone/file; echo z > becomes-dir; echo k > kept
: > nothing; mkfifo fifo; printf x > "$(printf 'odd\\377\\nname')"
chmod 600 plain; chmod 751 moved; chmod 1777 empty; chmod 400 kept
"""

SECOND_STAGE: Final = """
cd tree; rm -r gone becomes-dir; rmdir becomes-file; mkdir becomes-dir; echo f > becomes-file
echo in > becomes-dir/file; mv moved renamed; mkdir moved; echo new > moved/other
echo more >> plain; rm soft; ln -s hard soft; chmod 755 renamed/inner/file; rm kept; mkdir gone
truncate -s 1M sparse; touch -d 2001-02-03T04:05:06 nothing
"""

COUNTING: Final = """
n=0
while read -r line; do
  for _ in 1 2 3 4 5 6 7 8 9 10; do
    n=$((n + 1)); echo $n > new-a; mv new-a a; echo $n > new-b; mv new-b b
  done
  echo counted
done
"""
"""Writes the same number into `a` and then into `b`, each atomically, ten times per line of input.
Where it keeps running in a copy it gets no input, and so comes to rest."""

AT_REST: Final = """
until [ "$(cat a b)" = "$last" ]; do last=$(cat a b); sleep 0.5; done
"""


@check
async def commits_do_not_change(lab: Lab) -> None:
    """A commit keeps the state of its instant, whatever the machine does later."""
    machine = await lab.create()
    commits: dict[bytes, Commit] = {}
    for state in (b"one", b"two", b"three"):
        await machine.write(STATE, state)
        commits[state] = await lab.snapshot(machine)
    await machine.write(STATE, b"four")
    for state, commit in commits.items():
        expect_equal(await content(await lab.restore(commit), STATE), state, "the restored state")
    expect_equal(await content(machine, STATE), b"four", "the state of the machine itself")


@check
async def commits_are_described(lab: Lab) -> None:
    """A commit names its machine and its fidelity, and is listed until it is deleted."""
    machine = await lab.create()
    commit = await lab.snapshot(machine)
    expect_equal(commit.machine_id, machine.id, "its machine")
    expect_equal(commit.fidelity, machine.capabilities.fidelity, "its fidelity")
    expect(commit in await lab.backend.commits(), "it is not listed")
    await lab.backend.delete_commit(commit.id)
    await lab.backend.delete_commit(commit.id)
    expect(commit not in await lab.backend.commits(), "it is listed after it was deleted")
    await expect_error(UnknownHandle, lab.backend.restore(commit.id), "restoring it")


@check
async def restored_machines_are_independent(lab: Lab) -> None:
    """Machines restored from one commit share no change."""
    machine = await lab.create()
    await machine.write(STATE, b"common")
    commit = await lab.snapshot(machine)
    one, two = await lab.restore(commit), await lab.restore(commit)
    await one.write(STATE, b"changed")
    await sh(two, "rm state")
    expect_equal(await content(one, STATE), b"changed", "the one that was changed")
    expect_equal(await content(await lab.restore(commit), STATE), b"common", "a third one")
    expect_equal((await one.info()).parent, commit.id, "the parent")


@check
async def branches_are_independent(lab: Lab) -> None:
    """Branches start with the machine's state and share no change."""
    machine = await lab.create()
    await machine.write(STATE, b"common")
    branches = await lab.branch(machine, 3, labels={"purpose": "a branch"})
    expect_equal(len({machine.id, *(branch.id for branch in branches)}), 4, "different ids")
    for branch in branches:
        expect_equal(await content(branch, STATE), b"common", "the state of a branch")
        await branch.write(STATE, branch.id.encode())
        info = await branch.info()
        expect_equal(info.parent, machine.id, "the parent of a branch")
        expect_equal(dict(info.labels), {"purpose": "a branch"}, "its labels")
    for branch in branches:
        expect_equal(await content(branch, STATE), branch.id.encode(), "a branch's own state")
    expect_equal(await content(machine, STATE), b"common", "the state of the machine itself")


@check
async def copies_are_from_one_instant(lab: Lab) -> None:
    """Copies made while a program writes are each from one instant, branches from the same."""
    machine = await lab.create()
    copies: list[Machine] = []
    async with await machine.spawn(["sh", "-c", COUNTING]) as process:
        await _count(process)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_keep_counting, process)
            copies += await lab.branch(machine, 3)
            copies.append(await lab.restore(await lab.snapshot(machine)))
            tasks.cancel_scope.cancel()
    keeps_running = lab.backend.capabilities.fidelity == "memory"
    look = f"{AT_REST if keeps_running else ''}cat a b"
    pairs = [[int(number) for number in (await sh(copy, look)).split()] for copy in copies]
    expect(pairs[0] == pairs[1] == pairs[2], f"branches are from different instants: {pairs}")
    for a, b in pairs:
        expect(a - b in {0, 1}, f"a copy mixes two instants: {a} was written before {b}")


@check
async def parents_keep_running(lab: Lab) -> None:
    """A program keeps running while its machine is snapshotted and branched."""
    machine = await lab.create()
    async with await machine.spawn(["cat"]) as process:
        for take in (lab.snapshot, lab.branch):
            await process.stdin.send(b"before ")
            expect_equal(await _receive_some(process), b"before ", "the echo before")
            await take(machine)
            await process.stdin.send(b"after ")
            expect_equal(await _receive_some(process), b"after ", "the echo after")


@check
async def children_outlive_their_parents(lab: Lab) -> None:
    """Branches and commits outlive the machine that they come from."""
    machine = await lab.create()
    await machine.write(STATE, b"inherited")
    commit = await lab.snapshot(machine)
    (branch,) = await lab.branch(machine)
    restored = await lab.restore(commit)
    await machine.delete()
    expect_equal(await content(branch, STATE), b"inherited", "the branch")
    expect_equal(await content(await lab.restore(commit), STATE), b"inherited", "the commit")
    await lab.backend.delete_commit(commit.id)
    expect_equal(await content(restored, STATE), b"inherited", "a machine of a deleted commit")
    (grandchild,) = await lab.branch(restored)
    expect_equal(await content(grandchild, STATE), b"inherited", "its branch")


@check
async def chains_can_be_long(lab: Lab) -> None:
    """Twenty commits, each of a machine restored from the one before, keep everything."""
    machine = await lab.create()
    for number in range(CHAIN):
        await sh(machine, 'echo "$1" > "$1"; rm -f -- "$2"', str(number), str(number - 2))
        commit = await lab.snapshot(machine)
        await machine.delete()
        machine = await lab.restore(commit)
    left = (await sh(machine, "cat *")).split()
    expect_equal(left, [str(CHAIN - 2), str(CHAIN - 1)], "the files at the end")


@check
async def one_machine_can_be_snapshotted_often(lab: Lab) -> None:
    """Twenty snapshots of one machine each keep their own state."""
    machine = await lab.create()
    commits: list[Commit] = []
    for number in range(CHAIN):
        await sh(machine, 'echo "$1" > "$1"', str(number))
        commits.append(await lab.snapshot(machine))
    for number in (0, CHAIN // 2, CHAIN - 1):
        names = (await sh(await lab.restore(commits[number]), "ls")).split()
        expect_equal(len(names), number + 1, f"files in commit {number}")


@check
async def trees_come_out_identical(lab: Lab) -> None:
    """Links, modes, times, deletions and renamed directories are the same in every copy."""
    machine = await lab.create()
    for stage in (FIRST_STAGE, SECOND_STAGE):
        await sh(machine, stage)
        wanted = await _manifest(machine)
        restored = await lab.restore(await lab.snapshot(machine))
        expect_equal(await _manifest(restored), wanted, "the restored tree")
        (branch,) = await lab.branch(restored)
        expect_equal(await _manifest(branch), wanted, "the branched tree")
        expect_equal(await _manifest(machine), wanted, "the tree itself")
        machine = restored


@check_if(memory)
async def programs_keep_running_in_copies(lab: Lab) -> None:
    """Programs of a machine keep running in its branches and restored commits."""
    machine = await lab.create()
    count = (
        "n=0; while :; do n=$((n + 1)); echo $n > /dev/shm/new; mv /dev/shm/new /dev/shm/n; "
        "sleep 0.1; done"
    )
    pid = int(await sh(machine, '(sh -c "$1" >/dev/null 2>&1 & echo $!)', count))
    (branch,) = await lab.branch(machine)
    restored = await lab.restore(await lab.snapshot(machine))
    for copy in (machine, branch, restored):
        expect(await is_running(copy, pid), f"the program does not run in {copy.id}")
        seen = int(await sh(copy, "cat /dev/shm/n"))
        wait = 'while [ "$(cat /dev/shm/n)" -le "$1" ]; do sleep 0.1; done'
        await sh(copy, wait, str(seen))
    await sh(branch, 'kill -9 "$1"', str(pid))
    expect(await is_running(machine, pid), "killing a program in a branch ended it in the machine")


async def _keep_counting(process: Process) -> None:
    while True:
        await _count(process)


async def _count(process: Process) -> None:
    await process.stdin.send(b"\n")
    await _receive_some(process)


async def _receive_some(process: Process) -> bytes:
    with anyio.fail_after(COMMAND_SECONDS):
        return await process.stdout.receive()


async def _manifest(machine: Machine) -> list[str]:
    argv = ["python3", "-c", inspect.getsource(manifest), "tree"]
    result = await run_command(machine, argv, timeout=COMMAND_SECONDS)
    expect(result.stdout.total > 0, f"the tree cannot be listed: {result.stderr.text}")
    return result.stdout.text.splitlines()
