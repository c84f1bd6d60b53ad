"""Our code for machines: packed once, and run there without a file of it."""

from __future__ import annotations

import importlib.util
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from vers_rlm_mcp.machines import code

if TYPE_CHECKING:
    import pytest

MAGIC_OF_ANOTHER = b"\0\0\0\0"


def modules_of(archive: bytes) -> set[str]:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return set(opened.namelist())


def test_an_archive_holds_every_module_as_source_and_as_bytecode() -> None:
    names = modules_of(code.guest_code("daemon"))
    sources = {name for name in names if name.endswith(".py")}
    assert "vers_rlm_machines/daemon/guest/wire.py" in sources
    assert names - sources == {f"{name}c" for name in sources}


def test_an_archive_is_the_same_whenever_it_is_made() -> None:
    first = code.guest_code("daemon", "bubblewrap")
    code.guest_code.cache_clear()
    assert code.guest_code("daemon", "bubblewrap") == first


def test_a_local_archive_holds_bytecode_alone_and_runs() -> None:
    sources = {f"{code.PACKAGE}/__init__.py": b"", f"{code.PACKAGE}/echo.py": ECHO}
    archive = code.pack(sources, local=True)
    assert modules_of(archive) == {f"{name}c" for name in sources}
    assert run(archive, "echo", archive + b"input").stdout == b"['argument'] True input\n"


def test_no_path_of_this_computer_is_in_an_archive() -> None:
    assert str(Path(code.__file__).parent).encode() not in code.guest_code("daemon")


def test_another_python_compiles_for_itself() -> None:
    python = Path(sys.executable)
    assert code.guest_code("daemon", python=python) == code.guest_code("daemon")


def test_an_archive_with_bytecode_of_another_python_runs_from_its_sources(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "MAGIC_NUMBER", MAGIC_OF_ANOTHER)
    name = f"{code.PACKAGE}/greeting.py"
    archive = code.pack({f"{code.PACKAGE}/__init__.py": b"", name: b"def main(): print('hello')"})
    assert run(archive, "greeting").stdout == b"hello\n"


def run(
    archive: bytes, module: str, sent: bytes | None = None
) -> subprocess.CompletedProcess[bytes]:
    argv = [sys.executable, *code.loader(module, archive), "argument"]
    return subprocess.run(
        argv, input=archive if sent is None else sent, capture_output=True, check=False, timeout=60
    )


ECHO = b"""
import sys
def main():
    print(sys.argv[3:], __file__.startswith("/proc/self/fd/"), sys.stdin.read())
"""


def test_what_follows_the_code_is_left_for_the_program() -> None:
    archive = code.pack({f"{code.PACKAGE}/__init__.py": b"", f"{code.PACKAGE}/echo.py": ECHO})
    result = run(archive, "echo", archive + b"input")
    assert result.stdout == b"['argument'] True input\n", result.stderr


def test_code_that_is_cut_short_is_not_run() -> None:
    archive = code.guest_code("daemon")
    result = run(archive, "daemon.guest.daemon", archive[: len(archive) // 2])
    assert (result.returncode, result.stderr) == (1, b"the code was cut short\n")


def test_code_can_come_over_another_descriptor() -> None:
    archive = code.pack({f"{code.PACKAGE}/__init__.py": b"", f"{code.PACKAGE}/echo.py": ECHO})
    reading, writing = os.pipe()
    os.write(writing, archive)
    os.close(writing)
    argv = [sys.executable, *code.loader("echo", archive, reading)]
    result = subprocess.run(argv, input=b"in", capture_output=True, pass_fds=[reading], check=True)
    os.close(reading)
    assert result.stdout == b"[] True in\n"


LIST_MODULES = b"""
import sys
from .bubblewrap.guest import init
def main():
    print(*sys.modules)
"""
SLOW = {"contextlib", "enum", "functools", "json", "re", "signal", "typing"}
"""Each takes milliseconds, of the few tens in which a machine boots."""


def test_pid_1_starts_without_slow_modules() -> None:
    sources = {f"{code.PACKAGE}/__init__.py": b"", f"{code.PACKAGE}/listing.py": LIST_MODULES}
    for room in ("daemon", "bubblewrap"):
        sources[f"{code.PACKAGE}/{room}/__init__.py"] = b""
        folder = Path(code.__file__).parent / room / "guest"
        sources |= code.modules(folder, f"{code.PACKAGE}/{room}/guest")
    result = run(code.pack(sources), "listing")
    imported = set(result.stdout.decode().split())
    assert f"{code.PACKAGE}.bubblewrap.guest.init" in imported, result.stderr
    assert not imported & SLOW
