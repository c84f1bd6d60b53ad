"""An organisation that others use as well, and a service that does not say the truth: what is not
ours stops nothing, is asked nothing and is never deleted; what is ours is not forgotten.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from vers_client import UNKNOWN, hurry

from vers_emulator import Answer, Hang, LoseReply, Options, Refuse, VersEmulator, config_of
from vers_rlm_mcp.errors import MachineError
from vers_rlm_mcp.machines import Fleet, run_command
from vers_rlm_mcp.machines.vers import VersBackend
from vers_rlm_mcp.store import Ledger

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from vers_emulator import Fault
    from vers_emulator.vms import Vm
    from vers_rlm_mcp.machines import Machine

LIMIT = 25.0
CROWD = 3000

ODD: list[Any] = [
    {"labels": None},
    {"labels": ["a"]},
    {"labels": {"a": 5, "b": None, "c": "\ud800", "\udc00": "d"}},
    {"created_at": None},
    {"created_at": "yesterday"},
    {"created_at": 10**400},
    {"created_at": "99999-01-01T00:00:00Z"},
    {"created_at": "0001-01-01T00:00:00+23:59"},
    {"state": "hibernating"},
    {"state": None},
    {"state": {"is": "running"}},
    {"owner_id": 7, "cost": float("nan"), "more": [[[[{}]]]]},
]
"""What machines of others may look like, beside their ids."""

NO_MACHINES: list[Any] = [None, 5, "vm", [], {}, {"vm_id": None}, {"vm_id": "../vms"}]
"""What no id can be read from."""


@pytest.fixture(autouse=True)
async def _calm(emulator: VersEmulator, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[None]:
    hurry(monkeypatch)
    yield
    emulator.faults.clear()
    cloud = emulator.cloud
    cloud.foreign.clear()
    cloud.clock, cloud.tells_date = 0.0, True
    for vm in emulator.vms:
        await cloud.delete(vm.id)
    for commit_id in list(cloud.commits):
        await cloud.delete_commit(commit_id)


@asynccontextmanager
async def server(emulator: VersEmulator, state: Path) -> AsyncGenerator[Fleet]:
    """A server of a state directory; leaving it leaves its machines, as if it had been killed."""
    ledger = Ledger(state)
    async with VersBackend(config_of(emulator)) as backend:
        yield Fleet(backend, ledger, max_machines=50)
    ledger.close()


LOST = [
    Answer(at="GET /vms"),  # the truth, once
    LoseReply(at="POST /vm/new_root"),
    Refuse(at="*", times=None),
]
"""The service makes a machine, and then answers nothing else."""


def foreign(**about: Any) -> dict[str, Any]:
    """A machine of others."""
    made = {"vm_id": str(uuid.uuid4()), "created_at": "2020-01-01T00:00:00Z", "state": "running"}
    return {**made, **about}


def forbid_details(emulator: VersEmulator) -> None:
    """Let the service refuse to describe the machines of others, each in another way."""
    statuses = [403, 404, 500, 200]
    for index, vm in enumerate(emulator.cloud.foreign):
        emulator.faults.set(
            Answer(
                at="GET /vm/*",
                vm=vm["vm_id"],
                status=statuses[index % 4],
                body="{garbage",
                times=None,
            )
        )


async def test_machines_of_others_stop_nothing_and_are_asked_nothing(
    emulator: VersEmulator, tmp_path: Path
) -> None:
    emulator.cloud.foreign = [foreign(**about) for about in ODD]
    forbid_details(emulator)
    others = [vm["vm_id"] for vm in emulator.cloud.foreign]
    emulator.cloud.foreign += NO_MACHINES
    emulator.cloud.foreign += emulator.cloud.foreign[:1]  # and one of them twice
    async with server(emulator, tmp_path) as fleet:
        machine = await fleet.create()
        (copy,) = await fleet.branch(machine)
        commit = await fleet.snapshot(machine)
        restored = await fleet.restore(commit.id)
        listed = [info.id for info in await fleet.list()]
        assert set(listed) == {machine.id, copy.id, restored.id, *others}
        assert len(listed) == len(set(listed))
        assert len(await fleet.inventory()) == len(listed) + 1
        await fleet.delete(copy.id)
        await fleet.delete_commit(commit.id)
    async with server(emulator, tmp_path) as fleet:
        assert set(await fleet.sweep()) == {machine.id, restored.id}
    assert emulator.vms == []
    assert len(emulator.cloud.foreign) == len(ODD) + len(NO_MACHINES) + 1
    assert not [vm_id for vm_id in others if emulator.counts.asked_about[vm_id]]


async def test_among_thousands_of_machines_of_others_a_sweep_deletes_ours_and_asks_for_no_other(
    emulator: VersEmulator, tmp_path: Path
) -> None:
    async with server(emulator, tmp_path) as fleet:
        known = [await fleet.create() for _ in range(3)]
        commit = await fleet.snapshot(known[0], run="run")
        emulator.faults.set(*LOST)
        with pytest.raises(MachineError):
            await fleet.create()
        emulator.faults.clear()
        await fleet.delete_commit(commit.id)
    emulator.cloud.foreign = [
        foreign(created_at=emulator.cloud.now(), labels={"vers-rlm-mcp.request": "theirs"})
        for _ in range(CROWD)
    ]
    asked = sum(emulator.counts.requests.values())
    async with server(emulator, tmp_path) as fleet:
        with anyio.fail_after(LIMIT):
            swept = await fleet.sweep()
    assert set(swept) >= {machine.id for machine in known}
    assert emulator.vms == []
    assert len(emulator.cloud.foreign) == CROWD
    assert sum(emulator.counts.requests.values()) - asked < 30


@pytest.mark.parametrize(
    "trouble", [Refuse(at="GET /vms", times=None), Hang(at="GET /vms", times=None)], ids=str
)
async def test_what_is_known_by_id_is_deleted_even_if_nothing_can_be_listed(
    emulator: VersEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: Fault
) -> None:
    monkeypatch.setattr("vers_rlm_mcp.machines.fleet.REMOVE_SECONDS", 2.0)
    async with server(emulator, tmp_path) as fleet:
        machine = await fleet.create()
        fleet.ledger.ask("vers", limit=9)  # for which there is no machine
    emulator.faults.set(trouble)
    async with server(emulator, tmp_path) as fleet:
        with anyio.fail_after(LIMIT):
            assert await fleet.sweep() == [machine.id]
    assert emulator.vms == []


async def test_lists_are_read_page_by_page(emulator: VersEmulator, backend: VersBackend) -> None:
    vms = [foreign() for _ in range(250)]
    answers = [vms[:100], vms[100:200], vms[200:]]
    emulator.faults.set(
        *(
            Answer(at="GET /vms", body=json.dumps({"vms": part, "total": 250, "limit": 100}))
            for part in answers
        )
    )
    assert len(await backend.list()) == 250
    endless = json.dumps({"vms": vms[:100], "total": 10**9})
    emulator.faults.set(Answer(at="GET /vms", body=endless, times=None))
    with anyio.fail_after(LIMIT):
        assert len(await backend.list()) == 100


# What the service says that it made


MAKING = {
    "create": "POST /vm/new_root",
    "branch": "POST /vm/*/branch",
    "restore": "POST /vm/from_commit",
}


async def make(fleet: Fleet, how: str, machine: Machine, commit_id: str) -> object:
    if how == "create":
        return await fleet.create()
    if how == "restore":
        return await fleet.restore(commit_id)
    return await fleet.branch(machine, 2 if how == "branch twice" else 1)


def said(how: str, *ids: object) -> str:
    """The answer to a request."""
    vms = [{"vm_id": vm_id} for vm_id in ids]
    return json.dumps({"vms": vms} if how.startswith("branch") else vms[0])


@pytest.mark.parametrize("how", MAKING)
@pytest.mark.parametrize("named", ["foreign", "foreign and young", "ours", "deleted", "nowhere"])
async def test_a_machine_that_a_request_did_not_make_is_refused_and_left_alone(
    emulator: VersEmulator, tmp_path: Path, how: str, named: str
) -> None:
    does = named != "nowhere"  # whether a machine is made that is not named
    async with server(emulator, tmp_path) as fleet:
        machine = await fleet.create()
        commit = await fleet.snapshot(machine)
        gone = await fleet.create()
        await fleet.delete(gone.id)
        stranger = foreign(labels={"of": "theirs"})
        emulator.cloud.foreign = [stranger]
        if named == "foreign and young":  # and so in no list before the request
            stranger["created_at"] = emulator.cloud.now()
            emulator.faults.set(Answer(at="GET /vms", body="[]"))
        ids = {"foreign": stranger["vm_id"], "ours": machine.id, "deleted": gone.id}
        told = ids.get(named.partition(" ")[0], UNKNOWN)
        emulator.faults.set(Answer(at=MAKING[how], status=201, body=said(how, told), does=does))
        handshakes = emulator.counts.asked_about[told]
        with pytest.raises(MachineError, match=f"{told}.*not.*left as it"):
            await make(fleet, how, machine, commit.id)
        assert emulator.counts.asked_about[told] - handshakes <= 20  # looked at, not entered
        alive = [record.machine_id for record in fleet.ledger.live("vers") if record.machine_id]
        assert alive == [machine.id]
        await fleet.sweep()
        assert [vm.id for vm in emulator.vms] == [machine.id]
        assert emulator.cloud.foreign == [stranger]
        assert (await run_command(machine, ["true"], timeout=10)).exit_code == 0


ODD_IDS: list[Any] = [
    *("", "../../vms", "a/b", "x" * 100_000, "\0", UNKNOWN + "\n", f"{UNKNOWN}?x=", "\ud800"),
    *(7, None, [], {}, True),
]


@pytest.mark.parametrize("how", MAKING)
async def test_an_id_of_odd_form_is_no_id(emulator: VersEmulator, tmp_path: Path, how: str) -> None:
    async with server(emulator, tmp_path) as fleet:
        machine = await fleet.create()
        commit = await fleet.snapshot(machine)
        for told in ODD_IDS:
            emulator.faults.set(
                Answer(at=MAKING[how], status=201, body=said(how, told), does=False, times=None)
            )
            with pytest.raises(MachineError):
                await make(fleet, how, machine, commit.id)
            emulator.faults.clear()
        assert [record.machine_id for record in fleet.ledger.live("vers")][:1] == [machine.id]
    assert [vm.id for vm in emulator.vms] == [machine.id]


async def test_the_same_machine_twice_is_not_two(emulator: VersEmulator, tmp_path: Path) -> None:
    async with server(emulator, tmp_path) as fleet:
        machine = await fleet.create()
        (copy,) = await fleet.branch(machine)
        for told in (copy.id, UNKNOWN):
            emulator.faults.set(
                Answer(at="POST /vm/*/branch", body=said("branch", told, told.upper()))
            )
            with pytest.raises(MachineError, match="twice"):
                await fleet.branch(machine, 2)
        assert {vm.id for vm in emulator.vms} == {machine.id, copy.id}


async def test_a_commit_that_a_request_did_not_take_is_refused_and_left_alone(
    emulator: VersEmulator, tmp_path: Path
) -> None:
    async with server(emulator, tmp_path) as fleet:
        machine = await fleet.create()
        theirs = await emulator.cloud.commit(machine.id, "theirs", None, keep_paused=False)
        for told in (theirs.id, UNKNOWN):
            emulator.faults.set(
                Answer(at="POST /vm/*/commit", body=json.dumps({"commit_id": told}))
            )
            with pytest.raises(MachineError, match=f"commit {told}.*left as it is"):
                await fleet.snapshot(machine)
    assert list(emulator.cloud.commits) == [theirs.id]
    await emulator.cloud.delete_commit(theirs.id)


@pytest.mark.parametrize("forged", ["older", "two of them"])
async def test_a_commit_that_cannot_be_proven_to_be_ours_is_told_and_left_alone(
    emulator: VersEmulator, tmp_path: Path, forged: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with server(emulator, tmp_path) as fleet:
        machine = await fleet.create()
        intent = fleet.ledger.ask_commit("vers")  # for which there is no commit
    theirs = [
        await emulator.cloud.commit(machine.id, f"vers-rlm-{intent}", None, keep_paused=False)
        for _ in range(2 if forged == "two of them" else 1)
    ]
    if forged == "older":
        theirs[0].created_at = "2020-01-01T00:00:00Z"
    async with server(emulator, tmp_path) as fleet:
        assert await fleet.sweep() == [machine.id]
    assert list(emulator.cloud.commits) == [commit.id for commit in theirs]
    assert all(commit.id in caplog.text for commit in theirs)


async def test_few_machines_of_others_are_looked_at_to_find_a_copy_without_a_label(
    emulator: VersEmulator, tmp_path: Path
) -> None:
    async with server(emulator, tmp_path) as fleet:
        machine = await fleet.create(run="run")
        fleet.ledger.ask("vers", limit=9, parent=machine.id)
        (copy,) = await emulator.cloud.branch(machine.id, "by a server that was killed")
    emulator.cloud.foreign = [foreign(created_at=emulator.cloud.now()) for _ in range(CROWD)]
    forbid_details(emulator)
    async with server(emulator, tmp_path) as fleet:
        assert set(await fleet.sweep()) == {machine.id, copy.id}
    asked = [vm for vm in emulator.cloud.foreign if emulator.counts.asked_about[vm["vm_id"]]]
    assert len(asked) < 100
    assert len(emulator.cloud.foreign) == CROWD


# Labels


@asynccontextmanager
async def lost_machine(emulator: VersEmulator, state: Path) -> AsyncGenerator[Vm]:
    """A machine that a server asked for, and was killed before it learnt the id."""
    emulator.faults.set(*LOST)
    async with server(emulator, state) as fleet:
        with pytest.raises(MachineError):
            await fleet.create()
    emulator.faults.clear()
    (vm,) = emulator.vms
    yield vm


async def test_a_machine_of_which_only_the_service_knew_is_found_by_its_labels(
    emulator: VersEmulator, tmp_path: Path
) -> None:
    async with lost_machine(emulator, tmp_path) as lost, server(emulator, tmp_path) as fleet:
        assert await fleet.sweep() == [lost.id]


@pytest.mark.parametrize(
    ("forged", "hours"),
    [
        *(("older", hours) for hours in (0.0, -9.0, 9.0)),
        *((forged, 0.0) for forged in ("no secret", "another secret", "both")),
    ],
)
async def test_a_forged_label_deletes_no_machine(
    emulator: VersEmulator,
    tmp_path: Path,
    forged: str,
    hours: float,
    caplog: pytest.LogCaptureFixture,
) -> None:
    emulator.cloud.clock = hours * 3600
    async with lost_machine(emulator, tmp_path) as lost:
        labels = dict(lost.labels)
        if forged == "no secret":  # as an earlier version labelled its own
            del labels["secret"]
        elif forged == "another secret":
            labels["secret"] = labels["intent"]
        stranger = foreign(labels=labels, created_at=emulator.cloud.now())
        if forged == "older":
            made = time.time() + emulator.cloud.clock - 3600
            stranger["created_at"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(made))
        emulator.cloud.foreign = [stranger]
        async with server(emulator, tmp_path) as fleet:
            swept = await fleet.sweep()
        assert emulator.cloud.foreign == [stranger]
        assert stranger["vm_id"] in caplog.text
        # With two that prove the same, none is deleted, and both are told.
        assert swept == ([] if forged == "both" else [lost.id])
        assert forged != "both" or lost.id in caplog.text
        assert not emulator.counts.asked_about[stranger["vm_id"]]


async def test_a_machine_of_an_earlier_version_is_told_if_no_record_has_its_id(
    emulator: VersEmulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with lost_machine(emulator, tmp_path) as lost:
        del lost.labels["secret"]
        async with server(emulator, tmp_path) as fleet:
            fleet.ledger._database.execute("UPDATE machines SET secret = NULL")  # pyright: ignore[reportPrivateUsage] - as an earlier version made it
            for _ in range(2):
                caplog.clear()
                assert await fleet.sweep() == []
                assert lost.id in caplog.text
            assert [vm.id for vm in emulator.vms] == [lost.id]
            await fleet.delete(lost.id)
    assert emulator.vms == []


async def test_machines_of_a_lost_ledger_are_told_and_can_be_deleted(
    emulator: VersEmulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with server(emulator, tmp_path / "lost") as fleet:
        machine = await fleet.create()
    async with server(emulator, tmp_path / "new") as fleet:
        assert await fleet.sweep() == []
        assert machine.id in caplog.text
        assert await fleet.strays() == [machine.id]
        await fleet.delete(machine.id)
    assert emulator.vms == []


# Deleting


REFUSALS: list[Answer] = [
    Answer(at="DELETE *", does=False, status=status, body=body, times=None)
    for status, body in (
        *((status, "") for status in (200, 202, 204, 409, 500)),
        *((status, '{"error": "no such VM", "success": false}') for status in (403, 404)),
    )
]


@pytest.mark.parametrize("answer", REFUSALS, ids=lambda fault: fault.status)
async def test_a_machine_that_is_said_to_be_deleted_and_is_not_is_told_and_deleted_later(
    emulator: VersEmulator, tmp_path: Path, answer: Answer, caplog: pytest.LogCaptureFixture
) -> None:
    async with server(emulator, tmp_path) as fleet:
        machine = await fleet.create(keep=True)
        emulator.faults.set(answer)
        with pytest.raises(MachineError, match=machine.id):
            await fleet.delete(machine.id)
        assert await fleet.sweep() == []
        assert machine.id in caplog.text
    async with server(emulator, tmp_path) as fleet:
        caplog.clear()
        assert await fleet.sweep() == []
        assert machine.id in caplog.text
        emulator.faults.clear()
        assert await fleet.sweep() == [machine.id]
    assert emulator.vms == []


async def test_a_machine_that_is_deleted_counts_as_deleted_whatever_is_said(
    emulator: VersEmulator, tmp_path: Path
) -> None:
    async with server(emulator, tmp_path) as fleet:
        for status in (202, 204, 400, 403, 404, 409, 410, 418, 429, 500, 503):
            machine = await fleet.create()
            body = '{"error": "odd", "success": false}'
            emulator.faults.set(Answer(at="DELETE *", status=status, body=body, times=None))
            await fleet.delete(machine.id)
            emulator.faults.clear()
            assert fleet.ledger.live("vers") == []
            assert emulator.vms == []


async def test_whether_a_machine_is_gone_is_learnt_from_the_list_where_its_status_is_refused(
    emulator: VersEmulator, tmp_path: Path
) -> None:
    async with server(emulator, tmp_path) as fleet:
        machine = await fleet.create()
        refused = '{"error": "not yours", "success": false}'
        emulator.faults.set(Answer(at="GET /vm/*/status", status=403, body=refused, times=None))
        await fleet.delete(machine.id)
    assert emulator.vms == []


# The clock


@pytest.mark.parametrize("hours", [-9, 9])
async def test_a_clock_that_is_hours_away_changes_nothing(
    emulator: VersEmulator, tmp_path: Path, hours: float
) -> None:
    emulator.cloud.clock = hours * 3600
    async with server(emulator, tmp_path) as fleet:
        machine = await fleet.create(run="run")
        (copy,) = await fleet.branch(machine)
        commit = await fleet.snapshot(machine)
        restored = await fleet.restore(commit.id)
        assert all(abs(info.created_at - time.time()) < 60 for info in await fleet.list())
        assert abs(commit.created_at - time.time()) < 60
        await fleet.delete_commit(commit.id)
    async with server(emulator, tmp_path) as fleet:
        assert set(await fleet.sweep()) == {machine.id, copy.id, restored.id}
    async with lost_machine(emulator, tmp_path) as lost, server(emulator, tmp_path) as fleet:
        assert await fleet.sweep() == [lost.id]


async def test_a_service_without_a_date_is_taken_to_have_our_clock(
    emulator: VersEmulator, tmp_path: Path
) -> None:
    emulator.cloud.tells_date = False
    async with lost_machine(emulator, tmp_path) as lost, server(emulator, tmp_path) as fleet:
        assert await fleet.sweep() == [lost.id]


async def test_an_older_service_that_names_one_copy_of_several_is_believed(
    state: Path, tmp_path: Path
) -> None:
    async with (
        VersEmulator(state, Options.older()) as emulator,
        server(emulator, tmp_path) as fleet,
    ):
        machine = await fleet.create()
        copies = await fleet.branch(machine, 2)
        assert len({machine.id, *(copy.id for copy in copies)}) == 3
        assert not re.search("stray", str(await fleet.strays()))
