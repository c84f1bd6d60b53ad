"""What runs in a machine runs on its own Python, which may be old and bare."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from vers_rlm_mcp import machines

HOME = Path(machines.__file__).parent
SOURCES = [HOME / "bytecode.py", *sorted(HOME.glob("*/guest/*.py"))]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(HOME)))
def test_it_is_python_3_8_and_needs_the_standard_library_only(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert {alias.name.partition(".")[0] for alias in node.names} <= sys.stdlib_module_names
        elif isinstance(node, ast.ImportFrom) and not node.level:
            assert (node.module or "").partition(".")[0] in sys.stdlib_module_names
