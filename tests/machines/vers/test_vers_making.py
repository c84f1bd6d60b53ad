"""Whatever becomes of an answer, no machine and no commit is lost, and none is deleted wrongly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import anyio
import pytest
from vers_client import UNKNOWN, hurry

from vers_emulator import (
    Delay,
    Fault,
    Garbage,
    Hang,
    LoseReply,
    NotReady,
    Options,
    Refuse,
    Reset,
    Truncate,
    VersEmulator,
    config_of,
    quota,
)
from vers_rlm_mcp.errors import BackendUnavailable, MachineError, UnknownHandle
from vers_rlm_mcp.machines import ExitStatus, MachineSpec, read_bytes, run_command
from vers_rlm_mcp.machines.vers import Key, VersBackend, VersConfig, api, making

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from pathlib import Path

    from vers_rlm_mcp.machines import Machine

pytestmark = pytest.mark.slow

LIMIT = 20.0
"""Seconds for anything here; far more than it takes."""


@pytest.fixture(autouse=True)
async def _calm(emulator: VersEmulator, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[None]:
    hurry(monkeypatch)
    yield
    emulator.faults.clear()
    async with VersBackend(config_of(emulator)) as backend:
        for info in await backend.list():
            await backend.delete(info.id)
        for commit in await backend.commits():
            await backend.delete_commit(commit.id)


class Make(Protocol):
    """A way to make machines."""

    __name__: str

    async def __call__(
        self, backend: VersBackend, machine: Machine, commit: str
    ) -> Sequence[Machine]: ...


async def create(backend: VersBackend, machine: Machine, commit: str) -> Sequence[Machine]:
    return [await backend.create()]


async def restore(backend: VersBackend, machine: Machine, commit: str) -> Sequence[Machine]:
    return [await backend.restore(commit)]


async def branch(backend: VersBackend, machine: Machine, commit: str) -> Sequence[Machine]:
    return await machine.branch(2)


PLACES = [
    (create, "POST /vm/new_root"),
    (restore, "POST /vm/from_commit"),
    (branch, "POST /vm/*/branch"),
]
LOST = [LoseReply, Truncate, Garbage, Reset, Refuse]


@pytest.mark.parametrize(("make", "at"), PLACES, ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize("fault", LOST)
async def test_a_machine_whose_answer_was_lost_is_found_or_made_once_more(
    emulator: VersEmulator,
    backend: VersBackend,
    machine: Machine,
    fault: type[Fault],
    make: Make,
    at: str,
) -> None:
    commit = await machine.snapshot()
    before = {vm.id for vm in emulator.vms}
    emulator.faults.set(fault(at=at, times=2))
    made = await make(backend, machine, commit.id)
    ids = {one.id for one in made}
    assert {vm.id for vm in emulator.vms} == before | ids
    for one in made:
        assert (await run_command(one, ["true"], timeout=10)).status == ExitStatus(0)
    infos = {info.id: info for info in await backend.list()}
    parents = {"create": None, "restore": commit.id, "branch": machine.id}
    assert {infos[made_id].parent for made_id in ids} == {parents[make.__name__]}
    for made_id in ids:
        await backend.delete(made_id)
    await backend.delete_commit(commit.id)


async def test_a_commit_whose_answer_was_lost_is_found(
    emulator: VersEmulator, backend: VersBackend, machine: Machine
) -> None:
    emulator.faults.set(LoseReply(at="POST /vm/*/commit", times=2))
    commit = await machine.snapshot()
    assert list(emulator.cloud.commits) == [commit.id]
    await backend.delete_commit(commit.id)


async def test_copies_that_someone_else_makes_at_the_same_time_are_left_alone(
    emulator: VersEmulator, backend: VersBackend, machine: Machine
) -> None:
    commit = await machine.snapshot()
    async with VersBackend(config_of(emulator)) as other:
        theirs = await other.create()
        emulator.faults.set(
            Delay(at="POST /vm/from_commit", seconds=0.3),
            LoseReply(at="POST /vm/from_commit"),
        )
        made: list[Machine] = []

        async def ours() -> None:
            made.append(await backend.restore(commit.id))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ours)
            made += [*await theirs.branch(), await other.create()]
        ids = {machine.id, theirs.id, *(one.id for one in made)}
        assert {vm.id for vm in emulator.vms} == ids
        for one in ids - {machine.id}:
            await backend.delete(one)
    await backend.delete_commit(commit.id)


async def test_what_cannot_be_labelled_is_not_kept(
    emulator: VersEmulator, machine: Machine
) -> None:
    emulator.faults.set(
        Refuse(at="PUT /vm/*/labels", status=400, times=None),
    )
    with pytest.raises(MachineError):
        await machine.branch(2)
    assert [vm.id for vm in emulator.vms] == [machine.id]


async def test_a_machine_that_never_lets_us_in_is_deleted(
    emulator: VersEmulator, backend: VersBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vers_rlm_mcp.machines.vers.reach.READY_SECONDS", 0.5)
    emulator.faults.set(NotReady(at="POST /vm/new_root", seconds=60))
    with anyio.fail_after(LIMIT), pytest.raises(MachineError, match="does not let us in"):
        await backend.create()
    assert list(emulator.vms) == []


async def test_ssh_that_comes_later_is_waited_for(
    emulator: VersEmulator, backend: VersBackend, machine: Machine
) -> None:
    emulator.faults.set(NotReady(at="POST /vm/*/branch", seconds=1))
    (copy,) = await machine.branch()
    assert (await run_command(copy, ["true"], timeout=10)).status
    await copy.delete()


async def test_what_a_service_in_trouble_kept_is_deleted_when_it_is_well_again(
    emulator: VersEmulator, backend: VersBackend, machine: Machine
) -> None:
    emulator.faults.set(
        Refuse(at="PUT /vm/*/labels", status=400, times=None),
        Refuse(at="DELETE /vm/*", times=None),
    )
    with pytest.raises(MachineError):
        await machine.branch()
    assert len(emulator.vms) == 2
    emulator.faults.clear()
    assert [info.id for info in await backend.list()] == [machine.id]


async def test_a_refusal_for_good_is_told_at_once(
    emulator: VersEmulator, backend: VersBackend, machine: Machine
) -> None:
    emulator.faults.set(quota("POST /vm/new_root", times=2))
    with pytest.raises(MachineError, match="Delete machines that are not needed"):
        await backend.create()
    assert [fault.times for fault in emulator.faults.left()] == [1]
    assert [vm.id for vm in emulator.vms] == [machine.id]


async def test_sustained_trouble_comes_to_an_end_and_says_what_to_do(
    emulator: VersEmulator, backend: VersBackend
) -> None:
    emulator.faults.set(Refuse(times=None))
    with anyio.fail_after(LIMIT), pytest.raises(MachineError, match="try again later"):
        await backend.create()
    emulator.faults.clear()
    assert await backend.list() == []


async def test_a_wrong_key_is_told_as_one(emulator: VersEmulator) -> None:
    config = config_of(emulator)
    wrong = Key(f"{UNKNOWN}{'0' * 64}", "VERS_API_KEY")
    async with VersBackend(VersConfig(wrong, url=config.url)) as backend:
        with pytest.raises(BackendUnavailable, match="key in VERS_API_KEY") as caught:
            await backend.create()
    assert wrong.value not in str(caught.value)


async def test_cancelling_does_not_wait_for_a_service_that_hangs(
    emulator: VersEmulator, backend: VersBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "FINISH_SECONDS", 0.2)
    emulator.faults.set(Hang(at="POST /vm/new_root"))
    with anyio.fail_after(LIMIT):
        with anyio.move_on_after(0.2) as scope:
            await backend.create()
        assert scope.cancelled_caught
    assert list(emulator.vms) == []


async def test_a_commit_that_others_descend_from_goes_with_the_last_of_them(
    emulator: VersEmulator, backend: VersBackend, machine: Machine
) -> None:
    commit = await machine.snapshot()
    restored = await backend.restore(commit.id)
    await backend.delete_commit(commit.id)
    assert await backend.commits() == []
    with pytest.raises(UnknownHandle):
        await backend.restore(commit.id)
    async with VersBackend(config_of(emulator)) as other:
        assert await other.commits() == []
    assert list(emulator.cloud.commits) == [commit.id]
    await restored.delete()
    assert list(emulator.cloud.commits) == []


async def test_a_restored_machine_gets_a_larger_disk(
    emulator: VersEmulator, backend: VersBackend, machine: Machine
) -> None:
    commit = await machine.snapshot()
    restored = await backend.restore(commit.id, MachineSpec(fs_size_mib=16384))
    assert emulator.counts.requests["PATCH /vm/{vm_id}/disk"] == 1
    await restored.delete()
    with pytest.raises(MachineError, match="16 MiB"):
        await backend.restore(commit.id, MachineSpec(fs_size_mib=16))
    assert [vm.id for vm in emulator.vms] == [machine.id]
    await backend.delete_commit(commit.id)


async def test_an_older_service_is_spoken_to_in_its_own_words(state: Path, tmp_path: Path) -> None:
    async with (
        VersEmulator(state, Options.older()) as emulator,
        VersBackend(config_of(emulator)) as backend,
    ):
        machine = await backend.create()
        (copy,) = await machine.branch(labels={"a": "b"})
        assert (await copy.info()).labels == {"a": "b"}
        client = api.VersApi(config_of(emulator))
        await client.pause(machine.id)
        assert (await client.status(machine.id)).state == "paused"
        await client.aclose()
        again = await backend.attach(machine.id)
        assert (await run_command(again, ["true"], timeout=10)).status
        several = await machine.branch(3)  # the answer names one of them
        ids = {machine.id, copy.id, *(one.id for one in several)}
        assert len(several) == 3
        assert {vm.id for vm in emulator.vms} == ids


@pytest.mark.parametrize("tag", ["project:stable", "stable"])
async def test_a_tag_is_as_good_as_the_id_of_its_commit(
    emulator: VersEmulator, backend: VersBackend, machine: Machine, tag: str
) -> None:
    await machine.write("/workspace/kept", b"kept")
    commit = await machine.snapshot()
    with pytest.raises(UnknownHandle):
        await backend.restore(tag)
    emulator.cloud.tag(tag, commit.id)
    restored = await backend.restore(tag, labels={"a": "b"})
    assert await read_bytes(restored, "/workspace/kept", length=10) == b"kept"
    info = await restored.info()
    assert (info.parent, info.labels) == (commit.id, {"a": "b"})
    assert {vm.id for vm in emulator.vms} == {machine.id, restored.id}


async def test_a_tag_whose_machine_may_have_been_made_is_not_restored_again(
    emulator: VersEmulator, backend: VersBackend, machine: Machine
) -> None:
    commit = await machine.snapshot()
    emulator.cloud.tag("project:stable", commit.id)
    emulator.faults.set(LoseReply(at="POST /vm/from_commit"))
    with pytest.raises(MachineError, match="may have been made all the same"):
        await backend.restore("project:stable")
    assert len(emulator.vms) == 2


async def test_every_copy_has_an_identity_of_its_own(
    backend: VersBackend, machine: Machine
) -> None:
    await machine.write("/etc/machine-id", b"0" * 32 + b"\n")
    commit = await machine.snapshot()
    copies = [*await machine.branch(2), await backend.restore(commit.id)]
    seen = {await read_bytes(one, "/etc/machine-id", length=100) for one in [machine, *copies]}
    assert len(seen) == 4
    assert {len(identity) for identity in seen} == {33}


async def test_a_copy_that_cannot_have_one_is_made_all_the_same(machine: Machine) -> None:
    await run_command(machine, "rm -f /etc/machine-id; mkdir /etc/machine-id", timeout=20)
    (copy,) = await machine.branch()
    assert (await run_command(copy, ["true"], timeout=20)).status == ExitStatus(0)
