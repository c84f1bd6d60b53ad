"""The functions that the model is told of are those that the kernel has."""

from __future__ import annotations

from vers_rlm_mcp.kernel.guest.functions import NAMES
from vers_rlm_mcp.rlm import FUNCTIONS


def test_the_model_is_told_of_every_function_of_the_kernel_and_of_no_other() -> None:
    assert {name for f in FUNCTIONS for name in (f.name, f.twin)} == NAMES
