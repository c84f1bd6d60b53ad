"""The emulator of the test host: of QEMU's program one instruction is changed, or none."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from microvm.emulator import NOTHING, mended

BEFORE = bytes.fromhex("410fb6f4 4489ab80330000")
STORE = bytes.fromhex("89b354efffff")
AFTER = bytes.fromhex("c7838433000000000000 48c78388330000ffffffff")
PROGRAM = b"\x90" * 50 + BEFORE + STORE + AFTER + b"\n\0" * 50


def test_the_store_is_replaced_and_nothing_moves() -> None:
    assert mended(PROGRAM) == PROGRAM.replace(STORE, NOTHING)
    assert len(mended(PROGRAM)) == len(PROGRAM)


@pytest.mark.parametrize("program", [PROGRAM * 2, PROGRAM.replace(AFTER, BEFORE), b""])
def test_a_program_that_is_not_known_is_left_as_it_is(
    program: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mended(program) == program
    assert "not known" in capsys.readouterr().out


def test_the_program_of_this_computer_is_known() -> None:
    found = shutil.which("qemu-system-x86_64")
    if found is None:
        pytest.skip("QEMU is not installed")
    program = Path(found).read_bytes()
    changed = mended(program)
    assert changed != program
    assert len(changed) == len(program)
