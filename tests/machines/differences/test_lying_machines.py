"""Machines whose programs say what they like: it ends soon, with an error that says where."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING, Final

import anyio
import pytest
from trees import sh

from assumptions import needs_root
from vers_rlm_mcp.errors import MachineError, VersRlmError
from vers_rlm_mcp.machines.differences import bring_back, diff, digest, merging

if TYPE_CHECKING:
    from trees import Pair

    from vers_rlm_mcp.machines import Machine

pytestmark = [needs_root, pytest.mark.slow]  # A machine lies by another Python in its system.

SECONDS: Final = 0.5
"""What a comparison may take here."""

MEMORY: Final = 48 << 20
"""More than the lines that a program may tell at all."""

LIES: Final = {
    "nothing": ":",
    "an endless line": "tr '\\0' x < /dev/zero",
    "endless noise": "cat /dev/urandom",
    "endless complaints": "yes complaint >&2",
    "a deep value": "head -c 300000 /dev/zero | tr '\\0' '['; echo; sleep 9",
    "a great number": "head -c 300000 /dev/zero | tr '\\0' 9; echo; sleep 9",
    "another shape": "yes '{}'",
    "wrong types": 'yes \'["file",[[],{},null,1e999,[0],7,8],null,"x",true,0]\'',
    "endless changes": """yes '["file",["/a",33188,1,1,[0,0],"",true],null,0,true,""]'""",
    "endless lines": """
        yes '["file",["/a",1,1,1,[0,0],"",true],null,0,true,"'$(seq 800|tr -d '\\n')'"]'""",
    "endless facts": 'yes \'["fact","debian/x","1",null]\'',
    "endless items": 'yes \'["/workspace/f","file",420,"00"]\'',
    "no answer": "sleep 100",
    "a crash": "echo 'no memory' >&2; exit 1",
    "a signal": "kill -9 $$",
}


EMPTY: Final = "echo '[\"end\"]'"


@pytest.mark.parametrize("side", [0, 1])
async def test_a_machine_that_lies_costs_the_host_neither_time_nor_memory(
    pair: Pair, side: int
) -> None:
    tracemalloc.start()
    try:
        for name, lie in LIES.items():
            await _replace_python(pair[side], lie)
            with anyio.fail_after(20), pytest.raises(MachineError) as caught:
                await diff(*pair, roots=["/workspace"], seconds=SECONDS)
            assert pair[0].id in str(caught.value) or pair[1].id in str(caught.value), name
            assert tracemalloc.get_traced_memory()[1] < MEMORY, name
            tracemalloc.reset_peak()
    finally:
        tracemalloc.stop()


async def test_a_child_that_lies_brings_nothing_into_its_parent(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "LOOK_SECONDS", SECONDS)
    child, parent = pair
    await sh(parent, "echo mine > f")
    before = await digest(child, ["f"])
    for lie in (*LIES.values(), EMPTY):
        await _replace_python(child, lie)
        with anyio.fail_after(20), pytest.raises(VersRlmError):
            await bring_back(child, parent, before)
        assert await sh(parent, "ls -A; cat f") == "f\nmine\n"


async def test_a_machine_that_says_it_is_empty_spoils_its_own_result(
    pair: Pair,
) -> None:
    await sh(pair[1], "echo > f")
    await _replace_python(pair[0], EMPTY)
    assert (await diff(*pair, roots=["/workspace"])).files == ()


async def test_what_is_packed_must_be_what_was_looked_at(pair: Pair) -> None:
    child, parent = pair
    before = await digest(child, ["out"])
    await sh(child, "mkdir out; echo good > out/a; ln -s /etc out/link")
    pack = r"""printf '["file",5]\n["block",0,5]\nevil\n["end"]\n["whole"]\n["commit","x"]\n'"""
    real = "/usr/bin/python3.real"
    await sh(child, f"cp /usr/bin/python3 {real}")
    await _replace_python(child, f'case "$*" in *" pack {{"*) {pack};; *) exec {real} "$@";; esac')
    with pytest.raises(MachineError, match="changed while it was carried"):
        await bring_back(child, parent, before)
    assert await sh(parent, "ls -A") == ""


@pytest.mark.parametrize(
    "path",
    ["/etc/evil", "/workspace/out/../evil", "/workspace/out/link/evil", "/workspace/out//x", "out"],
)
async def test_a_child_cannot_name_what_it_was_not_asked_for(pair: Pair, path: str) -> None:
    child, parent = pair
    before = await digest(child, ["out"])
    items = [("/workspace/out", "directory", ""), ("/workspace/out/link", "symlink", "/etc")]
    lines = "".join(
        f'["{p}","{kind}",493,"{to}"]\\n' for p, kind, to in [*items, (path, "symlink", "x")]
    )
    await _replace_python(child, f"printf '{lines}[\"end\"]\\n'")
    with pytest.raises(MachineError, match="makes no sense"):
        await bring_back(child, parent, before)
    assert await sh(parent, "ls -A; ls /etc/evil 2>&1 || true") == (
        "ls: cannot access '/etc/evil': No such file or directory\n"
    )


@pytest.mark.parametrize("side", [0, 1])
async def test_a_machine_without_python_is_named(pair: Pair, side: int) -> None:
    await sh(pair[side], "rm -f /usr/bin/python3* /usr/local/bin/python3*")
    with pytest.raises(MachineError, match=f"{pair[side].id}.*python3 cannot be run there"):
        await diff(*pair)
    with pytest.raises(MachineError, match="python3 cannot be run there"):
        await digest(pair[side], ["x"])


async def _replace_python(machine: Machine, script: str) -> None:
    await sh(machine, "rm -f /usr/local/bin/python3")
    await machine.write("/usr/local/bin/python3", f"#!/bin/sh\n{script}\n".encode(), mode=0o755)
