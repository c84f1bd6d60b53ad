"""What a copy must not have in common with its original and its siblings, and with the host."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from family import Family, branching
from lab import cell

if TYPE_CHECKING:
    from pathlib import Path

    from lab import Lab

KEY = "sk-marker-a51f09c2e77d4b10"

DRAW = """
import os, random, secrets, tempfile, uuid
drawn = {
    "random": random.random(),
    "shuffled": random.sample(range(10**6), 4),
    "uuid": uuid.uuid4().hex,
    "secret": secrets.token_hex(8),
    "temporary": tempfile.mktemp(),
    "hostname": exec("hostname").stdout,
    "machine-id": exec("cat /etc/machine-id 2>/dev/null").stdout,
}
"""
LOOK_FOR_KEYS = """
found = exec('''
env; cat /proc/*/environ /proc/*/cmdline 2>/dev/null | tr '\\\\0' '\\\\n'
grep -rIls sk-marker /workspace /root /home /tmp /run /etc /var 2>/dev/null
''')
"""


@pytest.mark.on_vers_too
async def test_copies_draw_random_numbers_and_have_identities_of_their_own(real: Lab):
    model = Family(
        *branching(
            "['like one.', 'like one.', 'like one.'], outputs='drawn: dict', keep='none'",
            f"{DRAW}\nFINAL([drawn, before] + [r.outputs['drawn'] for r in results])",
            before=f"import random; random.seed(7)\n{DRAW}\nbefore = drawn",
        ),
        one=[cell(f"{DRAW}\nFINAL(drawn)")],
    )
    result = await real.run("-> all: list[dict]", model)
    drawn: Any = result.outputs["all"]
    after, before, *copies = drawn
    assert after["hostname"] == before["hostname"]
    for what in after:
        values = [str(each[what]) for each in (after, *copies)]
        # Machines of bubblewrap have no machine-id, unless their base has one.
        assert len(set(values)) == 4 or (what == "machine-id" and not any(values)), (what, values)


@pytest.mark.on_vers_too
async def test_no_key_of_the_host_is_in_a_branch_a_commit_or_the_journal(
    real: Lab, monkeypatch: pytest.MonkeyPatch
):
    for name in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "SOME_TOKEN"):
        monkeypatch.setenv(name, KEY)
    model = Family(
        *branching(
            "['like look.'] * 2, outputs='found', keep='none'",
            f"{LOOK_FOR_KEYS}\nFINAL([found, *(r.outputs['found'] for r in results)])",
            before="commit = vmSnapshot()",
        ),
        look=[cell(f"{LOOK_FOR_KEYS}\nFINAL(found)")],
    )
    result = await real.run("-> all: list[str]", model, settings={"checkpoints": "step"})
    everywhere: Any = result.outputs["all"]
    for found in everywhere:
        assert "PATH=" in found
        assert "marker" not in found.replace("-rIls sk-marker", "")
    assert holding(KEY, real.directory) == []


def holding(text: str, directory: Path) -> list[Path]:
    """The files below a directory that hold a text."""
    return [
        path
        for path in directory.rglob("*")
        if path.is_file()
        and not path.is_symlink()
        and os.access(path, os.R_OK)
        and text.encode() in path.read_bytes()
    ]
