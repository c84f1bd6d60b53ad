"""Whether microsandbox is chosen: found out by trying, in a process of its own, and remembered."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vers_rlm_mcp.machines.microsandbox import forget, usable

BOOT_ID = "/proc/sys/kernel/random/boot_id"

PACKAGE = """
import os, sys
from pathlib import Path

with Path(os.environ["TRIALS"]).open("a") as file:
    file.write("tried\\n")
{action}
"""
"""A package that has the name and does one thing when the trial imports it."""


@pytest.fixture
def trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package is installed that notes here each time it is imported."""
    path = tmp_path / "trials"
    monkeypatch.setenv("TRIALS", str(path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=os.pathsep)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    metadata = tmp_path / "site" / "microsandbox-0.7.11.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: microsandbox\nVersion: 0.7.11")
    return path


def install(trials: Path, action: str) -> None:
    (trials.parent / "site" / "microsandbox.py").write_text(PACKAGE.format(action=action))


def test_a_trial_that_dies_is_a_no_with_its_reason(trials: Path, tmp_path: Path) -> None:
    install(trials, "sys.exit('no virtualization here')")
    found = usable(tmp_path)
    assert not found.yes
    assert "does not boot here" in found.reason


def test_a_package_that_aborts_its_process_harms_no_other(trials: Path, tmp_path: Path) -> None:
    install(trials, "os.abort()")
    assert not usable(tmp_path).yes


def test_what_was_found_is_remembered_until_the_next_boot(trials: Path, tmp_path: Path) -> None:
    install(trials, "sys.exit('no')")
    first = usable(tmp_path)
    tried = trials.read_text() if trials.exists() else ""
    assert usable(tmp_path) == first
    assert (trials.read_text() if trials.exists() else "") == tried
    remembered = tmp_path / "microsandbox" / "usable.json"
    other_boot = remembered.read_text().replace(Path(BOOT_ID).read_text().strip(), "another boot")
    remembered.write_text(other_boot)
    usable(tmp_path)
    assert remembered.read_text() != other_boot
    install(trials, "sys.exit(0)")
    assert not usable(tmp_path).yes
    forget(tmp_path)
    assert usable(tmp_path) != first, "it was tried once more"


def test_a_memory_that_cannot_be_read_is_no_memory(trials: Path, tmp_path: Path) -> None:
    install(trials, "sys.exit('no')")
    (tmp_path / "microsandbox").mkdir()
    (tmp_path / "microsandbox" / "usable.json").write_text('{"key": ')
    assert not usable(tmp_path).yes


def test_without_the_package_nothing_is_tried_and_nothing_written(tmp_path: Path) -> None:
    code = """
import importlib.metadata, sys
from pathlib import Path

def version(name):
    raise importlib.metadata.PackageNotFoundError(name)

importlib.metadata.version = version
from vers_rlm_mcp.machines.microsandbox import usable
print(usable(Path(sys.argv[1])).reason, "microsandbox" in sys.modules)
"""
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "the package microsandbox is not installed False\n"
    assert list(tmp_path.iterdir()) == []
