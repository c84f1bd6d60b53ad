"""What tests may assume of the machines that ``VERS_RLM_TEST_MACHINES`` names."""

from __future__ import annotations

import os

import pytest

MACHINES = os.environ.get("VERS_RLM_TEST_MACHINES")

CARRY_MEMORY = {"microsandbox"}
"""Machines whose copies carry more than the disk."""

REAL = {"bubblewrap", "microsandbox", "vers"}

ASSUMED = {
    "fake": ("it looks at what only the machines of tests have", REAL),
    "host": ("it looks at the machine's processes from this host", REAL),
    "disk": ("it is about what a copy of the disk alone does not carry", {"vers"}),
    "local": ("it counts descriptors, of which an open connection has some", {"vers"}),
    "quick": ("its limits are for machines that start and move data at once", {"vers"}),
}
"""What may be assumed: why it then is not for the machines of which it does not hold."""

needs_root = pytest.mark.skipif(
    "os.geteuid() != 0", reason="only root's machines have a system that can be changed"
)
"""Said as a text, since tests of machines may become another user once they are collected."""

MARKER = "assumes(what): runs only on machines of which that holds"


def hold_assumptions(item: pytest.Item) -> None:
    """Skip a test that assumes what does not hold of these machines."""
    for marker in item.iter_markers("assumes"):
        why, others = ASSUMED[marker.args[0]]
        if MACHINES in others:
            pytest.skip(f"not on {MACHINES}: {why}")
