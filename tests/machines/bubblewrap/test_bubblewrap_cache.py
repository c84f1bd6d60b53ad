"""What machines start from is made once for all state directories of a user, and removed when
nothing needs it any more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from vers_rlm_mcp.machines import Fleet
from vers_rlm_mcp.machines.bubblewrap import BubblewrapBackend
from vers_rlm_mcp.machines.bubblewrap.cache import Cache
from vers_rlm_mcp.store import Ledger

if TYPE_CHECKING:
    from collections.abc import Generator

    from conftest import Shell

USER: Final = """
import sys, time
from pathlib import Path
from vers_rlm_mcp.machines.bubblewrap.cache import Cache

root, content, seconds = sys.argv[1:]

def make(directory):
    with open(Path(root).parent / "made", "a") as file:
        file.write(content)
    (directory / "half").touch()
    print("making", flush=True)
    time.sleep(float(seconds))
    (directory / "whole").touch()

place = Cache(Path(root)).provide("system", "key", content, make)
assert (place / "whole").exists()
print(place, flush=True)
sys.stdin.read()
"""
"""A process that uses what was made from some content, and takes its time to make it."""


@contextmanager
def user(root: Path, content: str, seconds: float = 0) -> Generator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", USER, str(root), content, str(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        yield process
        process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def place_of(process: subprocess.Popen[str]) -> Path:
    while (told := line(process)) == "making":
        pass
    return Path(told)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "bases"


def names(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()} - {"lock"}


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


def make_foreign(path: Path) -> None:
    """Make a directory that is another user's or, by a user who cannot do that, is read-only."""
    path.mkdir(parents=True)
    if os.geteuid():
        path.chmod(0o500)
    else:
        os.chown(path, 1234, 1234)


@contextmanager
def held_open(file: Path) -> Generator[None]:
    """Another process has a file open."""
    file.touch()
    with file.open() as opened, subprocess.Popen(["sleep", "1000"], stdin=opened) as process:
        yield
        process.kill()


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data directory of a user who has no machines yet."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data" / "vers-rlm-mcp" / "bases"


async def test_two_state_directories_share_what_their_machines_start_from(
    tmp_path: Path, data: Path, sh: Shell
) -> None:
    for name in ("one", "two"):
        async with BubblewrapBackend(tmp_path / name) as backend:
            machine = await backend.create()
            seen = await sh(machine, "ls /etc/changed 2>/dev/null; touch /etc/changed; ls /bin/sh")
            assert seen == "/bin/sh\n"
    assert sorted(name.partition("-")[0] for name in names(data)) == ["system"]
    assert mode_of(data) == 0o700


async def test_a_place_that_is_not_the_users_is_not_used(
    tmp_path: Path, data: Path, sh: Shell
) -> None:
    make_foreign(data)
    async with BubblewrapBackend(tmp_path / "state") as backend:
        assert await sh(await backend.create(), "echo alive") == "alive\n"
    assert not names(data)
    assert len(names(tmp_path / "state" / "bubblewrap" / "cache")) == 1


def test_many_that_begin_at_once_make_one(root: Path) -> None:
    with (
        user(root, "a", seconds=0.5) as one,
        user(root, "a", seconds=0.5) as two,
        user(root, "a", seconds=0.5) as three,
    ):
        assert len({place_of(process) for process in (one, two, three)}) == 1
    assert (root.parent / "made").read_text() == "a"


def test_what_a_killed_process_was_making_is_made_again(root: Path) -> None:
    with user(root, "a", seconds=1000) as killed:
        assert line(killed) == "making"
        assert [name[0] for name in names(root)] == ["."]
    with user(root, "a") as after:
        place = place_of(after)
        assert {path.name for path in place.iterdir()} == {"half", "whole"}
    assert names(root) == {place.name}


def test_what_newer_content_replaced_is_removed_once_nothing_uses_it(root: Path) -> None:
    cache = Cache(root)
    with user(root, "old") as process:
        old = place_of(process)
        with user(root, "new") as other:
            new = place_of(other)
        assert cache.sweep() == []
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert cache.sweep() == [old.name]
    assert names(root) == {new.name}
    assert cache.sweep() == []


def test_what_nothing_replaced_is_kept(root: Path) -> None:
    cache = Cache(root)
    places = [
        cache.provide("image", "/not/mounted/now.tar", "a", Path.exists),
        cache.provide("image", "/another.tar", "a", Path.exists),
        cache.provide("system", "/another.tar", "a", Path.exists),
    ]
    cache.close()
    assert len(set(places)) == 3
    assert cache.sweep() == []
    assert names(root) == {place.name for place in places}


def test_what_was_used_last_is_kept_when_it_is_older(root: Path) -> None:
    for content in ("a", "b", "a"):
        cache = Cache(root)
        last = cache.provide("system", "key", content, Path.exists)
        cache.close()
    cache.sweep()
    assert names(root) == {last.name}


def test_nothing_is_swept_while_something_is_made(root: Path) -> None:
    for content in ("a", "b"):
        cache = Cache(root)
        cache.provide("system", "key", content, Path.exists)
        cache.close()
    with user(root, "c", seconds=1000) as making:
        assert line(making) == "making"
        assert Cache(root).sweep() == []
    assert len(Cache(root).sweep()) == 1


async def test_what_earlier_releases_kept_in_a_state_directory_is_removed_when_it_is_unused(
    tmp_path: Path, sh: Shell
) -> None:
    state = tmp_path / "state"
    async with BubblewrapBackend(state) as backend:
        machine = await backend.create()
        await machine.write("/workspace/kept", b"kept")
    old = state / "bubblewrap" / "bases"
    (old / "system-mapped-0123456789abcdef" / "etc").mkdir(parents=True)
    async with BubblewrapBackend(state) as backend:
        with held_open(state / "ledger"):
            await backend.sweep()
            assert "bases" in names(state / "bubblewrap")
        with closing(Ledger(tmp_path / "other")) as ledger:
            fleet = Fleet(backend, ledger, max_machines=1)
            assert "bases in the state directory" in await fleet.sweep()
        assert "bases" not in names(state / "bubblewrap")
        assert await sh(await backend.attach(machine.id), "cat /workspace/kept") == "kept"
