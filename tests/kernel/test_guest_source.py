"""The guest runs on the machine's own Python, which may be old and bare."""

from __future__ import annotations

import ast
import io
import sys
import zipfile
from pathlib import Path

import pytest

from vers_rlm_mcp import kernel
from vers_rlm_mcp.kernel.archive import guest_archive

HOME = Path(kernel.__file__).parent
SOURCES = sorted((HOME / "guest").glob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_the_guest_is_python_3_8(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    assert isinstance(tree, ast.Module)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_the_guest_imports_the_standard_library_only(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        else:
            continue
        for name in names:
            assert name.partition(".")[0] in sys.stdlib_module_names


def test_the_archive_holds_everything_as_source_and_as_bytecode() -> None:
    name, data = guest_archive()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = set(archive.namelist())
    modules = {name for name in names if name.endswith(".py")}
    assert {f"vers_rlm_kernel/guest/{path.name}" for path in SOURCES} <= modules
    assert {"vers_rlm_kernel/wire.py", "cloudpickle/cloudpickle.py"} <= modules
    assert {f"{module}c" for module in modules} == names - modules
    assert name.startswith("kernel-")


def test_the_archive_is_the_same_whenever_it_is_made() -> None:
    first = guest_archive()
    guest_archive.cache_clear()
    assert guest_archive() == first


def test_no_path_of_this_host_is_in_the_archive() -> None:
    _, data = guest_archive()
    assert str(HOME).encode() not in data
