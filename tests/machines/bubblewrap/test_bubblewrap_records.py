"""One damaged record costs what it records, and nothing else."""

from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING, Any

import pytest

from vers_rlm_mcp.machines import MachineSpec
from vers_rlm_mcp.machines.bubblewrap import BubblewrapBackend
from vers_rlm_mcp.machines.bubblewrap.records import CommitRecord, MachineRecord
from vers_rlm_mcp.machines.bubblewrap.store import Store, remove_tree

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Shell

LAYERS = ("aaaaaaaaaaaa", "bbbbbbbbbbbb", "cccccccccccc")


def _edit(**fields: Any) -> Callable[[Path], object]:
    return lambda path: path.write_text(json.dumps(json.loads(path.read_bytes()) | fields))


def _without(field: str) -> Callable[[Path], object]:
    def damage(path: Path) -> None:
        record = json.loads(path.read_bytes())
        del record[field]
        path.write_text(json.dumps(record))

    return damage


def _in_its_place(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "NULs": lambda path: path.write_bytes(b"\0" * path.stat().st_size),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "not UTF-8": lambda path: path.write_bytes(b'{"id": "\xff"}'),
    "another JSON": lambda path: path.write_text("[1]"),
    "deep": lambda path: path.write_text("[" * 100_000),
    "huge": lambda path: os.truncate(path, 1 << 40),
    "a field is missing": _without("layers"),
    "a text for a number": _edit(created_at="yesterday"),
    "no number": _edit(created_at=float("nan")),
    "null for a list": _edit(layers=None),
    "wrong size": _edit(spec={"mem_size_mib": "much"}),
    "paths for layers": _edit(layers=["../../.."]),
    "another's": _edit(id="other"),
    "a directory": _in_its_place(lambda path: (path / "x").mkdir(parents=True)),
    "a FIFO": _in_its_place(os.mkfifo),
    "a link to nothing": _in_its_place(lambda path: path.symlink_to(path.name)),
}


def filled(root: Path) -> Store:
    """A store with two machines, two commits and the layers of each."""
    store = Store(root)
    store.open()
    for number, name in enumerate(("first", "second")):
        common: dict[str, Any] = {"created_at": 1.0 + number, "base": "host", "spec": MachineSpec()}
        machine = MachineRecord(id=name, parent=None, labels={}, layers=(LAYERS[number],), **common)
        store.add(machine)
        store.add_commit(
            CommitRecord(id=name, machine_id=name, layers=(LAYERS[number], LAYERS[2]), **common)
        )
    for layer in LAYERS:
        (store.layers / layer).mkdir()
    return store


def ids(records: list[MachineRecord] | list[CommitRecord]) -> list[str]:
    return [record.id for record in records]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["machines/first/machine.json", "commits/first.json"])
def test_a_damaged_record_is_set_aside_and_told_once(
    tmp_path: Path, damage: str, kind: str, caplog: pytest.LogCaptureFixture
):
    store = filled(tmp_path)
    DAMAGES[damage](tmp_path / kind)
    for _ in range(2):
        left = [ids(store.machines()), ids(store.commits())]
        assert sorted(left) == [["first", "second"], ["second"]]
    (message,) = caplog.messages
    assert f"{tmp_path / kind} cannot be used" in message
    assert "`vers-rlm-mcp machines delete first` deletes what is left" in message
    store.drop_garbage()
    store.drop_machine("first")
    store.drop_commit("first")
    store.drop_garbage()
    store.empty_trash()
    assert [path.name for path in (tmp_path / "machines").iterdir()] == ["second"]
    assert [path.name for path in (tmp_path / "commits").iterdir()] == ["second.json"]
    assert sorted(path.name for path in store.layers.iterdir()) == [LAYERS[1], LAYERS[2]]
    assert list((tmp_path / "trash").iterdir()) == []


@pytest.mark.parametrize("kind", ["machines/first/machine.json", "commits/first.json"])
def test_a_record_of_a_later_version_is_read(tmp_path: Path, kind: str):
    store = filled(tmp_path)
    _edit(quota="project")(tmp_path / kind)
    assert ids(store.machines()) == ids(store.commits()) == ["first", "second"]


def test_layers_named_in_what_is_left_of_a_record_stay_until_it_is_deleted(tmp_path: Path):
    store = filled(tmp_path)
    DAMAGES["cut short"](tmp_path / "commits/first.json")
    store.drop_machine("first")
    store.drop_garbage()
    assert {path.name for path in store.layers.iterdir()} == set(LAYERS)


@pytest.mark.parametrize("place", ["machines", "commits", "layers", "trash", ""])
def test_what_others_put_there_does_no_harm(tmp_path: Path, place: str):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "file").write_text("mine")
    store = filled(tmp_path / "state")
    directory = tmp_path / "state" / place
    (directory / "link").symlink_to(foreign)
    (directory / "file.json").write_text("{}")
    (directory / "a directory").mkdir()
    os.mkfifo(directory / "fifo")
    assert ids(store.machines()) == ids(store.commits()) == ["first", "second"]
    store.drop_garbage()
    store.empty_trash()
    assert (foreign / "file").read_text() == "mine"
    assert {path.name for path in store.layers.iterdir()} >= set(LAYERS)


def test_a_link_is_removed_and_what_it_leads_to_stays(tmp_path: Path):
    (tmp_path / "foreign").mkdir(mode=0o500)
    (tmp_path / "link").symlink_to(tmp_path / "foreign")
    remove_tree(tmp_path / "link")
    assert [path.name for path in tmp_path.iterdir()] == ["foreign"]
    assert stat.S_IMODE((tmp_path / "foreign").stat().st_mode) == 0o500


async def test_machines_are_made_beside_damaged_ones_which_can_be_deleted(
    tmp_path: Path, sh: Shell
):
    async with BubblewrapBackend(tmp_path) as backend:
        lost, other = [await backend.create() for _ in range(2)]
        commit = await other.snapshot()
        home = tmp_path / "bubblewrap" / "machines" / lost.id
        (home / "machine.json").write_bytes(b"")
        (home / "lock").unlink()
        (home / "lock").mkdir()
    async with BubblewrapBackend(tmp_path) as backend:
        assert [info.id for info in await backend.list()] == [other.id]
        copy = await backend.restore(commit.id)
        await copy.write("/workspace/file", b"new")
        assert await sh(copy, "cat /workspace/file") == "new"
        assert await sh(await backend.attach(other.id), "echo here") == "here\n"
        await backend.delete(lost.id)
        assert not home.exists()
        for machine_id in (other.id, copy.id):
            await backend.delete(machine_id)


@pytest.mark.parametrize("mask", [0, 0o777])
def test_only_the_owner_may_look_into_the_store(tmp_path: Path, mask: int):
    before = os.umask(mask)
    try:
        filled(tmp_path / "state")
    finally:
        os.umask(before)
    for path in (tmp_path / "state").rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        if path.is_file():
            assert mode == 0o600, path
        elif path.parent == tmp_path / "state":
            assert mode == (0o755 if path.name == "layers" else 0o700), path
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
