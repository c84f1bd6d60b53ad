"""What is written down of machines and commits is there before they are, and in a later process."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vers_rlm_mcp.machines import Commit, MachineInfo, MachineSpec
from vers_rlm_mcp.machines.microsandbox.records import Records, new_name

if TYPE_CHECKING:
    from pathlib import Path


def machine(created_at: float = 1.5) -> MachineInfo:
    labels = {"intent": "i", "odd": "ä'\n\udcff"}
    spec = MachineSpec(1, 256, None)
    return MachineInfo(
        id=new_name(),
        backend="microsandbox",
        created_at=created_at,
        parent="parent",
        labels=labels,
        spec=spec,
        running=True,
    )


def test_machines_are_read_back_as_they_were_written_oldest_first(tmp_path: Path) -> None:
    older, newer = machine(1.0), machine(2.0)
    for written in (newer, older):
        Records(tmp_path / "new" / "directory").write(written)
    assert Records(tmp_path / "new" / "directory").machines() == [older, newer]


def test_commits_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    commit = Commit(
        id=new_name(),
        machine_id="m",
        created_at=1.0,
        fidelity="disk",
        notes=("It carries the disk only.",),
        intent="an intent",
    )
    Records(tmp_path).write(commit)
    assert Records(tmp_path).commits() == [commit]


def test_a_record_is_replaced_in_one_step_and_leaves_nothing_else(tmp_path: Path) -> None:
    records, record = Records(tmp_path), machine()
    records.write(record)
    changed = replace(record, parent=None)
    records.write(changed)
    assert records.machines() == [changed]
    assert len(list(tmp_path.iterdir())) == 1


def test_names_that_are_not_ours_harm_no_file(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text("{}")
    for name in ("keys", "../keys", "", "/", "nul\0", "x" * 300):
        Records(tmp_path / "records").delete(name)
        Records(tmp_path).delete(name)
    assert (tmp_path / "keys.json").exists()
