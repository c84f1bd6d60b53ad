"""What a backend promises about making, finding and deleting machines."""

from __future__ import annotations

import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import anyio

from vers_rlm_mcp.errors import MachineGone, UnknownHandle

from .lab import (
    COMMAND_SECONDS,
    Lab,
    check,
    content,
    expect,
    expect_equal,
    expect_error,
    sh,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vers_rlm_mcp.machines import Machine

STATE: Final = "/workspace/state"

UNKNOWN: Final = ("no-such-id", "", ".", "..", "../machines", "/", "a/b", "nul\0", "x" * 300)
"""Ids that do not exist, some of which would be harmful as file names."""

CANCEL_AFTER: Final = (0.0, 0.001, 0.005, 0.01, 0.02, 0.05)
"""Seconds after which making is cancelled: early, half-way, and when it is nearly done."""


@check
async def a_new_machine_is_described(lab: Lab) -> None:
    """A new machine describes itself, labels included, and is listed."""
    machine = await lab.create(labels={"purpose": "a check", "odd": "ä'\n"})
    info = await machine.info()
    expect_equal(info.id, machine.id, "its id")
    expect_equal(info.backend, lab.backend.name, "its backend")
    expect_equal(dict(info.labels), {"purpose": "a check", "odd": "ä'\n"}, "its labels")
    expect_equal((info.parent, info.running), (None, True), "its parent, and whether it runs")
    expect(info in await lab.backend.list(), "it is not listed as it describes itself")


@check
async def machines_are_listed_oldest_first(lab: Lab) -> None:
    """Machines and commits are listed in the order in which they were made."""
    made = [await lab.create() for _ in range(3)]
    commits = [await lab.snapshot(made[0]) for _ in range(3)]
    ids = [machine.id for machine in made]
    expect_equal([i.id for i in await lab.backend.list() if i.id in ids], ids, "the machines")
    ids = [commit.id for commit in commits]
    expect_equal([c.id for c in await lab.backend.commits() if c.id in ids], ids, "the commits")


@check
async def attaching_finds_the_machine(lab: Lab) -> None:
    """Attaching returns another handle on the same machine."""
    machine = await lab.create()
    other = await lab.backend.attach(machine.id)
    await machine.write(STATE, b"shared")
    expect_equal(other.id, machine.id, "the id")
    expect_equal(await content(other, STATE), b"shared", "the file")
    await other.aclose()
    expect_equal(
        await content(machine, STATE), b"shared", "the file, after the other handle closed"
    )


@check
async def unknown_ids_are_refused(lab: Lab) -> None:
    """An unknown id is refused, and the error names valid ones."""
    machine = await lab.create()
    commit = await lab.snapshot(machine)
    for unknown in UNKNOWN:
        error = await expect_error(UnknownHandle, lab.backend.attach(unknown), f"id {unknown!r}")
        expect(machine.id in str(error), f"the error names no valid id: {error}")
        error = await expect_error(UnknownHandle, lab.backend.restore(unknown), f"id {unknown!r}")
        expect(commit.id in str(error), f"the error names no valid id: {error}")


@check
async def deleting_the_unknown_does_nothing(lab: Lab) -> None:
    """Deleting an unknown id is no error and does no harm."""
    machine = await lab.create()
    commit = await lab.snapshot(machine)
    for unknown in UNKNOWN:
        await lab.backend.delete(unknown)
        await lab.backend.delete_commit(unknown)
    await sh(machine, "true")
    await lab.restore(commit)


@check
async def a_deleted_machine_is_gone(lab: Lab) -> None:
    """Calls on a deleted machine raise MachineGone. Deleting it again is no error."""
    machine = await lab.create()
    await machine.delete()
    await machine.delete()
    await lab.backend.delete(machine.id)
    expect(machine.id not in {i.id for i in await lab.backend.list()}, "it is still listed")
    await expect_error(MachineGone, machine.spawn(["true"]), "spawn")
    await expect_error(MachineGone, machine.read(STATE), "read")
    await expect_error(MachineGone, machine.write(STATE, b""), "write")
    await expect_error(MachineGone, machine.snapshot(), "snapshot")
    await expect_error(MachineGone, machine.branch(), "branch")
    await expect_error(MachineGone, machine.info(), "info")
    await expect_error(UnknownHandle, lab.backend.attach(machine.id), "attach")


@check
async def deleting_ends_programs(lab: Lab) -> None:
    """Deleting a machine ends its programs, and a call that waits for one returns."""
    machine = await lab.create()
    process = await machine.spawn(["sleep", "1000"])
    with anyio.fail_after(COMMAND_SECONDS):
        await machine.delete()
        with suppress(MachineGone):
            expect(not (await process.wait()).ok, "a program that was killed reports success")
        await process.aclose()


@check
async def deletions_may_be_concurrent(lab: Lab) -> None:
    """Machines and commits may be deleted concurrently, even the same one twice."""
    machines = [await lab.create() for _ in range(4)]
    commits = [await lab.snapshot(machine) for machine in machines]
    with anyio.fail_after(COMMAND_SECONDS):
        async with anyio.create_task_group() as tasks:
            for machine, commit in zip(machines, commits, strict=True):
                tasks.start_soon(machine.delete)
                tasks.start_soon(lab.backend.delete, machine.id)
                tasks.start_soon(lab.backend.delete_commit, commit.id)
    left = {found.id for found in (*await lab.backend.list(), *await lab.backend.commits())}
    gone = {made.id for made in (*machines, *commits)}
    expect(not left & gone, f"still listed: {left & gone}")


@check
async def copies_may_be_concurrent(lab: Lab) -> None:
    """Machines may be made, copied and used concurrently."""
    machine = await lab.create()
    await machine.write(STATE, b"shared")

    async def copy(take: Callable[[], Awaitable[Machine]]) -> None:
        expect_equal(await content(await take(), STATE), b"shared", "a concurrent copy")

    async def branch() -> Machine:
        return (await lab.branch(machine))[0]

    async def commit() -> Machine:
        return await lab.restore(await lab.snapshot(machine))

    with anyio.fail_after(2 * COMMAND_SECONDS):
        async with anyio.create_task_group() as tasks:
            for take in (branch, commit, branch, commit):
                tasks.start_soon(copy, take)
            tasks.start_soon(sh, machine, "echo concurrent > other")
            tasks.start_soon(lab.create)


@check
async def cancelled_making_leaves_nothing(lab: Lab) -> None:
    """Cancelling create, branch or snapshot leaves no machine and no commit."""
    machine = await lab.create()

    async def known() -> set[str]:
        machines = {info.id for info in await lab.backend.list()}
        return machines | {commit.id for commit in await lab.backend.commits()}

    async def branch() -> set[str]:
        return {made.id for made in await lab.branch(machine, 2)}

    async def create() -> set[str]:
        return {(await lab.create()).id}

    async def snapshot() -> set[str]:
        return {(await lab.snapshot(machine)).id}

    wanted = await known()
    for make in (create, branch, snapshot):
        for seconds in CANCEL_AFTER:
            with anyio.move_on_after(seconds):
                wanted |= await make()
            left = await known() - wanted
            expect(not left, f"a cancelled {make.__name__} left {left}")
    expect_equal(await sh(machine, "echo fine"), "fine\n", "the machine afterwards")


@check
async def a_restart_keeps_machines(lab: Lab) -> None:
    """Machines and commits survive a restart: a second backend object finds and uses them."""
    machine = await lab.create(labels={"purpose": "to last"})
    await machine.write(STATE, b"durable")
    intent = uuid.uuid4().hex
    commit = await lab.snapshot(machine, intent)
    expect_equal(commit.intent, intent, "the intent of the commit")
    (branch,) = await lab.branch(machine)
    backend = await lab.reopen()
    infos = {info.id: info for info in await backend.list()}
    expect({machine.id, branch.id} <= infos.keys(), "a machine is not listed after a restart")
    expect_equal(dict(infos[machine.id].labels), {"purpose": "to last"}, "its labels")
    expect(commit in await backend.commits(), "a commit is not listed after a restart")
    for attached in (await backend.attach(machine.id), await backend.attach(branch.id)):
        expect_equal(await content(attached, STATE), b"durable", "a file after the restart")
        expect_equal(await sh(attached, "cat state"), "durable", "a program after the restart")
    expect_equal(await content(await lab.restore(commit), STATE), b"durable", "the commit")
