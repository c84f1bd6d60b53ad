"""A repository whose tests one of three plans makes green, and a model that tries them.

Of the other two, one takes the compiler away for good, and one never comes to an end.
"""

from __future__ import annotations

import shutil

import pytest
from family import Family
from lab import cell

FILES = {
    "area.c": "int area(int width, int height) { return width + height; }\n",
    "tests.c": "int area(int, int);\nint main(void) { return area(3, 4) != 12; }\n",
    "check": "trap 'rm -f tests' EXIT\ncc -o tests area.c tests.c && ./tests && echo green\n",
}
MENDED = FILES["area.c"].replace("+", "*")
CHECK = "sh check"

PLANS = ["Install anew, like reinstall.", "Watch it run, like debug.", "Mend it, like mend."]

SET_UP = f"""
for name, text in {FILES!r}.items():
    writeFile(name, text)
before = vmSnapshot()
"""
REINSTALL = """
assert not currentVmId().startswith("fake"), "this would be the host's own compiler"
print(exec("rm -f $(readlink -f /usr/bin/cc) /usr/bin/cc; sh check"))
"""
DEBUG = "exec('while :; do sleep 1; done')"
MEND = """
writeFile("area.c", readFile("area.c").replace("+", "*"))
writeFile("CHANGES", "An area is a product.\\n")
print(exec("sh check"))
"""
HAND_IN = "FINAL(patch=readFile('area.c'))"

TRY = f"results = branches({PLANS!r}, outputs='patch', verify={CHECK!r})"
TELL = """
lines = vmDiff(before, path="/workspace").splitlines()
changes = [line for line in lines if line[1:].startswith(" /workspace")]
FINAL([r.status for r in results], changes, readFile("area.c"))
"""
SIGNATURE = "-> tries: list[str], changes: list[str], area"
CHANGES = ["+ /workspace/CHANGES (22 bytes)", "~ /workspace/area.c (content)"]
OUTPUTS = {
    "tries": ["partial", "partial", "finished"],
    "changes": CHANGES,
    "area": MENDED,
}

CELL_SECONDS = 5
"""How long the cell hangs. The others take a tenth of a second, or one where much else goes on."""

needs_compiler = pytest.mark.skipif(
    shutil.which("cc", path="/usr/bin") is None, reason="machines here have no C compiler"
)


def branching_model() -> Family:
    """Tries all plans at once, each in a branch."""
    return Family(
        cell(SET_UP),
        cell(TRY),
        cell(TELL),
        reinstall=[cell(REINSTALL), cell(HAND_IN)],
        debug=[cell(DEBUG)],
        mend=[cell(MEND), cell(HAND_IN)],
    )


def straight_model() -> Family:
    """Tries one plan after the other where it is."""
    return Family(*map(cell, (SET_UP, REINSTALL, DEBUG, MEND, HAND_IN)), '{"patch": "mended"}')
