"""The fleet: every machine that it makes is removed, whatever happens."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING

import anyio
import pytest

from vers_rlm_mcp.errors import MachineError, UnknownHandle
from vers_rlm_mcp.machines import Fleet, Machine, MachineSpec, read_bytes
from vers_rlm_mcp.machines.bubblewrap import BubblewrapBackend
from vers_rlm_mcp.machines.removal import SETTLE_SECONDS
from vers_rlm_mcp.store import Ledger
from vers_rlm_mcp.testing import FakeBackend, FakeMachine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Mapping
    from pathlib import Path

    from vers_rlm_mcp.store import MachineRecord

KILLED_SERVER = """
import anyio, pathlib, sys
from vers_rlm_mcp.machines import Fleet
from vers_rlm_mcp.store import Ledger
from {module} import {name}

class Halfway({name}):
    async def create(self, spec=None, *, labels=None):
        machine = await super().create(spec, labels=labels)
        print(machine.id, flush=True)
        await anyio.sleep_forever()

async def main(directory):
    ledger = Ledger(directory / "ledger")
    fleet = Fleet({name}(directory / "machines"), ledger, max_machines=10)
    plain = await fleet.create()
    kept = await fleet.create(keep=True)
    process = await plain.spawn(["sleep", "1000"])
    noted = await fleet.snapshot(plain)
    ledger.record_commit = lambda *_, **__: None  # killed before
    unnoted = await fleet.snapshot(kept)
    print(plain.id, kept.id, noted.id, unnoted.id, flush=True)
    await Fleet(Halfway(directory / "machines"), ledger, max_machines=10).create(keep=True)

anyio.run(main, pathlib.Path(sys.argv[1]))
"""


class Stubborn(FakeBackend):
    """Refuses to delete what is named in `stuck`, and delays making where `slow` is set."""

    stuck: frozenset[str] = frozenset()
    slow = False

    async def delete(self, machine_id: str) -> None:
        if machine_id in self.stuck:
            raise MachineError("the disk is on fire")
        await super().delete(machine_id)

    async def create(
        self, spec: MachineSpec | None = None, *, labels: Mapping[str, str] | None = None
    ) -> FakeMachine:
        machine = await super().create(spec, labels=labels)
        if self.slow:
            await anyio.sleep_forever()
        return machine


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[Stubborn]:
    async with Stubborn(tmp_path / "machines") as backend:
        yield backend
        backend.stuck = frozenset()
        for info in await backend.list():
            await backend.delete(info.id)


@pytest.fixture
async def fleet(backend: Stubborn, tmp_path: Path) -> AsyncIterator[Fleet]:
    ledger = Ledger(tmp_path / "ledger")
    yield Fleet(backend, ledger, max_machines=4)
    ledger.close()


def labels_of(record: MachineRecord) -> dict[str, str]:
    """What a machine that was made for a record bears."""
    return {"intent": record.intent, "secret": record.secret or ""}


async def ids(fleet: Fleet) -> set[str]:
    return {info.id for info in await fleet.list()}


async def test_a_machine_bears_the_intent_that_the_ledger_holds(fleet: Fleet) -> None:
    machine = await fleet.create(run="run-1")
    (record,) = fleet.ledger.live("fake")
    assert (record.machine_id, record.run, record.kept) == (machine.id, "run-1", False)
    labels = {"intent": record.intent, "secret": record.secret}
    labels |= {"server": record.owner, "run": "run-1"}
    assert (await machine.info()).labels == labels


async def test_copies_are_written_with_where_they_come_from(fleet: Fleet) -> None:
    machine = await fleet.create()
    await machine.write("/workspace/state", b"inherited")
    commit = await fleet.snapshot(machine, run="run-1", step=2)
    restored = await fleet.restore(commit.id)
    (branch,) = await fleet.branch(machine)
    assert await read_bytes(restored, "/workspace/state", length=99) == b"inherited"
    assert await read_bytes(branch, "/workspace/state", length=99) == b"inherited"
    parents = {record.machine_id: record.parent for record in fleet.ledger.live("fake")}
    assert parents == {machine.id: None, restored.id: commit.id, branch.id: machine.id}
    assert [(c.id, c.run, c.step) for c in fleet.ledger.commits("fake")] == [
        (commit.id, "run-1", 2)
    ]
    assert await fleet.commits() == [commit]


async def test_the_limit_names_what_can_be_deleted(fleet: Fleet) -> None:
    machines = [await fleet.create() for _ in range(3)]
    with pytest.raises(MachineError, match=f"2 more .* 4 .*oldest first: {machines[0].id}, "):
        await fleet.branch(machines[0], 2)
    assert len(await ids(fleet)) == 3
    await fleet.delete(machines[0].id)
    assert len(await fleet.branch(machines[1], 2)) == 2


async def test_the_limit_holds_for_machines_made_at_once(fleet: Fleet) -> None:
    made: list[Machine] = []
    refused: list[MachineError] = []

    async def create() -> None:
        try:
            made.append(await fleet.create())
        except MachineError as error:
            refused.append(error)

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(create)
    assert (len(made), len(refused)) == (4, 6)


async def test_a_run_takes_its_machines_with_it(fleet: Fleet) -> None:
    own, kept = await fleet.create(run="run-1"), await fleet.create(run="run-1", keep=True)
    other = await fleet.create(run="run-2")
    await fleet.branch(own, run="run-1")
    assert await fleet.release_run("run-1") == []
    assert await ids(fleet) == {kept.id, other.id}


async def test_a_machine_can_be_kept_later(fleet: Fleet) -> None:
    machine = await fleet.create(run="run-1")
    await fleet.keep(machine.id)
    await fleet.release_run("run-1")
    await fleet.aclose()
    assert await ids(fleet) == {machine.id}


async def test_closing_deletes_what_is_not_kept_even_when_cancelled(fleet: Fleet) -> None:
    kept = await fleet.create(keep=True)
    await fleet.create()
    with anyio.move_on_after(0):
        async with fleet:
            await fleet.create()
    assert await ids(fleet) == {kept.id}


async def test_one_machine_that_stays_does_not_save_the_others(
    fleet: Fleet, backend: Stubborn, caplog: pytest.LogCaptureFixture
) -> None:
    stuck, _ = await fleet.create(run="run-1"), await fleet.create(run="run-1")
    backend.stuck = frozenset({stuck.id})
    (warning,) = await fleet.release_run("run-1")
    assert warning == f"Machine {stuck.id} could not be deleted: the disk is on fire"
    assert await ids(fleet) == {stuck.id}
    await fleet.aclose()
    assert warning in caplog.text
    backend.stuck = frozenset()
    await fleet.aclose()
    assert await ids(fleet) == set()


async def test_what_could_not_be_deleted_in_time_is_swept_unless_it_was_kept_since(
    fleet: Fleet, backend: Stubborn
) -> None:
    ann = fleet.seen_by("ann")
    late, saved = await ann.create(run="run-1"), await ann.create(run="run-1")
    other = await ann.create(run="run-2")
    backend.stuck = frozenset({late.id, saved.id})
    assert len(await ann.release_run("run-1")) == 2
    await ann.keep(saved.id)
    assert await fleet.sweep() == []
    backend.stuck = frozenset()
    assert await fleet.sweep() == [late.id]
    assert await ids(fleet) == {saved.id, other.id}


async def test_a_cancelled_creation_leaves_nothing(fleet: Fleet, backend: Stubborn) -> None:
    backend.slow = True
    started = time.monotonic()
    with anyio.move_on_after(0.2) as scope:
        await fleet.create(keep=True)
    assert scope.cancelled_caught
    assert time.monotonic() - started < 2
    assert await ids(fleet) == set()
    assert fleet.ledger.live("fake") == []


async def test_creations_cancelled_at_any_moment_leave_nothing(fleet: Fleet) -> None:
    machine = await fleet.create()
    for number in range(30):
        with anyio.move_on_after(number / 1000):
            await fleet.create(run="run-1")
        with anyio.move_on_after(number / 1000):
            await fleet.branch(machine, 2, run="run-1")
        await fleet.release_run("run-1")
        assert await ids(fleet) == {machine.id}


async def test_failed_creations_do_not_use_up_the_limit(fleet: Fleet) -> None:
    for _ in range(10):
        with pytest.raises(UnknownHandle):
            await fleet.restore("no-such-commit")
    assert len([await fleet.create() for _ in range(4)]) == 4


async def test_a_failed_creation_is_forgotten_once_nothing_can_come_of_it(fleet: Fleet) -> None:
    with pytest.raises(UnknownHandle):
        await fleet.restore("no-such-commit")
    await fleet.sweep()
    assert len(fleet.ledger.live("fake")) == 1
    with closing(sqlite3.connect(fleet.ledger.path)) as long_ago, long_ago:
        long_ago.execute("UPDATE machines SET asked_at = asked_at - ?", (SETTLE_SECONDS,))
    await fleet.sweep()
    assert fleet.ledger.live("fake") == []


async def test_a_machine_that_appears_late_is_swept(fleet: Fleet, backend: Stubborn) -> None:
    with pytest.raises(UnknownHandle):
        await fleet.restore("no-such-commit")
    (record,) = fleet.ledger.live("fake")
    late = await backend.create(labels=labels_of(record))
    assert await fleet.sweep() == [late.id]
    assert await ids(fleet) == set()


async def test_a_sweep_leaves_machines_of_live_servers_and_strangers(
    fleet: Fleet, backend: Stubborn, tmp_path: Path
) -> None:
    other = Ledger(tmp_path / "ledger")
    wanted = {
        (await fleet.create()).id,
        (await Fleet(backend, other, max_machines=1).create()).id,
        (await backend.create(labels={"intent": "of another ledger"})).id,
    }
    assert await fleet.sweep() == []
    assert await ids(fleet) == wanted
    other.close()


@pytest.mark.parametrize("kind", [FakeBackend, BubblewrapBackend])
async def test_machines_and_unknown_commits_of_a_killed_server_are_swept(
    kind: type[FakeBackend | BubblewrapBackend], tmp_path: Path
) -> None:
    source = KILLED_SERVER.format(module=kind.__module__, name=kind.__name__)
    argv = [sys.executable, "-c", source, str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as server:  # noqa: ASYNC220 - ends here
        assert server.stdout
        plain, kept, noted, unnoted = server.stdout.readline().split()
        halfway = server.stdout.readline().strip()
        with closing(Ledger(tmp_path / "ledger")) as ledger:
            async with kind(tmp_path / "machines") as backend:
                fleet = Fleet(backend, ledger, max_machines=4)
                assert await ids(fleet) == {plain, kept, halfway}
                assert [commit.id for commit in await fleet.commits()] == [noted, unnoted]
                assert await fleet.sweep() == []
                server.kill()
                server.wait(10)
                assert sorted(await fleet.sweep()) == sorted([plain, halfway, unnoted])
                assert await ids(fleet) == {kept}
                assert [commit.id for commit in await fleet.commits()] == [noted]
                assert await fleet.sweep() == []
                await fleet.delete(kept)


async def test_unknown_machines_are_refused_by_name(fleet: Fleet) -> None:
    machine = await fleet.create()
    for attempt in (fleet.attach, fleet.delete, fleet.keep):
        with pytest.raises(UnknownHandle, match=machine.id):
            await attempt("no-such-machine")


async def test_a_machine_can_be_deleted_twice(fleet: Fleet) -> None:
    machine = await fleet.create()
    await fleet.delete(machine.id)
    await fleet.delete(machine.id)
    assert fleet.ledger.live("fake") == []


async def test_a_deleted_commit_is_written_down(fleet: Fleet) -> None:
    commit = await fleet.snapshot(await fleet.create())
    await fleet.delete_commit(commit.id)
    assert await fleet.commits() == []
    assert fleet.ledger.commits("fake")[0].deleted_at is not None


async def refused(call: Awaitable[object]) -> str:
    with pytest.raises(UnknownHandle) as refusal:
        await call
    return str(refusal.value)


async def test_a_principal_sees_and_uses_only_its_own(fleet: Fleet) -> None:
    ann, bob = fleet.seen_by("ann"), fleet.seen_by("bob")
    hers, his = await ann.create(), await bob.create(keep=True)
    (copy,) = await ann.branch(hers)
    commit = await bob.snapshot(his)
    restored = await bob.restore(commit.id)
    assert await ids(ann) == {hers.id, copy.id}
    assert await ids(bob) == {his.id, restored.id}
    assert await ids(fleet) == await ids(ann) | await ids(bob)
    assert ([c.id for c in await ann.commits()], len(await bob.commits())) == ([], 1)
    for machine_id in (his.id, restored.id, "invented"):
        for call in (ann.attach, ann.delete, ann.keep):
            text = await refused(call(machine_id))
            assert text == f"No machine {machine_id!r}. Known, newest first: {copy.id}, {hers.id}."
    for commit_id in (commit.id, "invented"):
        text = await refused(ann.restore(commit_id))
        assert text == f"No commit {commit_id!r}: there is no commit at all yet."
        await ann.delete_commit(commit_id)
    assert (await bob.attach(his.id)).id == his.id
    assert (await bob.restore(commit.id)).id in await ids(bob)


async def test_what_a_principal_has_deleted_tells_nothing_of_others(fleet: Fleet) -> None:
    ann, bob = fleet.seen_by("ann"), fleet.seen_by("bob")
    await bob.create()
    gone = await ann.create()
    commit = await ann.snapshot(gone)
    await ann.delete(gone.id)
    await ann.delete(gone.id)
    await ann.delete_commit(commit.id)
    none = "there is no machine at all yet."
    assert await refused(ann.attach(gone.id)) == f"No machine {gone.id!r}: {none}"
    assert "no commit at all" in await refused(ann.restore(commit.id))


async def test_a_principal_at_its_limit_is_told_its_own_machines_only(fleet: Fleet) -> None:
    ann, bob = fleet.seen_by("ann"), fleet.seen_by("bob")
    his = await bob.create()
    hers = [(await ann.create()).id for _ in range(4)]
    with pytest.raises(MachineError) as refusal:
        await ann.create()
    assert all(machine_id in str(refusal.value) for machine_id in hers)
    assert his.id not in str(refusal.value)


async def test_the_end_of_the_server_is_the_end_of_every_principals_machines(
    fleet: Fleet,
) -> None:
    await fleet.seen_by("ann").create()
    kept = await fleet.seen_by("bob").create(keep=True)
    await fleet.aclose()
    assert await ids(fleet) == {kept.id}


@pytest.mark.parametrize("forged", ["no secret", "another secret", "older", "two of them", "odd"])
async def test_a_machine_that_cannot_be_proven_to_be_ours_is_told_and_left_alone(
    fleet: Fleet, backend: Stubborn, forged: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UnknownHandle):
        await fleet.restore("no-such-commit")
    (record,) = fleet.ledger.live("fake")
    labels = labels_of(record)
    if forged == "no secret":  # as an earlier version labelled them
        del labels["secret"]
    elif forged != "older" and forged != "two of them":
        labels["secret"] = "ä\udc80" if forged == "odd" else record.intent
    made = [await backend.create(labels=labels) for _ in range(2 if forged == "two of them" else 1)]
    if forged == "older":
        about = backend.machines / made[0].id / "about.json"
        about.write_text(json.dumps({**json.loads(about.read_text()), "created_at": 1.0}))
    assert await fleet.sweep() == []
    assert await ids(fleet) == {machine.id for machine in made}
    assert all(machine.id in caplog.text for machine in made)
    assert "cannot be proven" in caplog.text


async def test_machines_that_no_record_knows_are_told_once_and_can_be_deleted_by_hand(
    fleet: Fleet, backend: Stubborn, caplog: pytest.LogCaptureFixture
) -> None:
    stray = await backend.create(labels={"intent": "of-another-ledger", "secret": "x"})
    foreign = await backend.create(labels={"purpose": "of somebody else"})
    assert await fleet.strays() == [stray.id]
    states = {item.id: item.state for item in await fleet.inventory()}
    assert states == {stray.id: "running, not in the ledger", foreign.id: "running"}
    for _ in range(2):
        assert await fleet.sweep() == []
    assert caplog.text.count(stray.id) == 1
    assert foreign.id not in caplog.text
    await fleet.delete(stray.id)
    assert await ids(fleet) == {foreign.id}


@pytest.mark.parametrize("kept", [False, True])
async def test_what_a_user_could_not_delete_is_deleted_by_a_later_sweep(
    fleet: Fleet, backend: Stubborn, kept: bool
) -> None:
    machine = await fleet.create(keep=kept)
    backend.stuck = frozenset({machine.id})
    with pytest.raises(MachineError, match="on fire"):
        await fleet.delete(machine.id)
    assert await fleet.sweep() == []
    backend.stuck = frozenset()
    assert await fleet.sweep() == [machine.id]


class Forgetful(FakeBackend):
    """Says that it made machines that it did not make."""

    again: Machine | None = None

    async def create(
        self, spec: MachineSpec | None = None, *, labels: Mapping[str, str] | None = None
    ) -> FakeMachine:
        made = await super().create(spec, labels=labels)
        return made if self.again is None else await self.attach(self.again.id)


@pytest.mark.parametrize("deleted", [False, True])
async def test_a_machine_that_was_there_before_is_no_new_one(tmp_path: Path, deleted: bool) -> None:
    async with Forgetful(tmp_path / "machines") as backend:
        with closing(Ledger(tmp_path / "ledger")) as ledger:
            fleet = Fleet(backend, ledger, max_machines=2)
            first = backend.again = await fleet.create()
            if deleted:  # to the ledger
                ledger.mark_deleted("fake", first.id)
            with pytest.raises(MachineError, match=f"{first.id} as a new one"):
                await fleet.create()
            assert await ids(fleet) == {first.id}
            backend.again = None
            second = await fleet.create()
            for machine in first, second:
                await backend.delete(machine.id)
