"""Writing a file for the host: complete or not at all, and as the old one was otherwise."""

# ruff: noqa: ASYNC240 - the files of these tests are local

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from vers_rlm_mcp.machines.daemon import Daemon, command, connect_process, rest
from vers_rlm_mcp.machines.daemon.guest.frames import COMPLETE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SECONDS = 30.0
LARGE = bytes(3 << 20)


@pytest.fixture
async def daemon() -> AsyncIterator[Daemon]:
    started = await connect_process(["sh", "-c", command()])
    with anyio.fail_after(SECONDS):
        yield started
    await started.aclose()


@pytest.fixture
def ordinary_user() -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")


async def write(daemon: Daemon, path: Path, data: bytes, *, end: bytes = COMPLETE) -> str:
    """Write a file, and return the report."""
    job = daemon.start({"do": "write", "path": str(path), "mode": 0o640})
    with suppress(anyio.BrokenResourceError):
        await job.stdin.send(data + end)
    await job.stdin.aclose()
    report = await rest(job.report)
    await job.wait()
    await job.aclose()
    return report


@pytest.mark.parametrize("data", [b"", b"x", COMPLETE, COMPLETE[:-1], LARGE])
async def test_any_content_arrives_whole(daemon: Daemon, tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "deep" / "er" / "file"
    assert await write(daemon, path, data) == str(len(data))
    assert path.read_bytes() == data
    assert path.stat().st_mode & 0o7777 == 0o640
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("end", [b"", COMPLETE[:-1], COMPLETE + b"x"])
async def test_content_without_an_end_leaves_the_old_one(
    daemon: Daemon, tmp_path: Path, end: bytes
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    assert (await write(daemon, path, LARGE, end=end)).startswith("!")
    assert (await write(daemon, tmp_path / "new", LARGE, end=end)).startswith("!")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


async def test_a_daemon_that_ends_in_the_middle_leaves_the_old_content(
    daemon: Daemon, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    job = daemon.start({"do": "write", "path": str(path), "mode": 0o640})
    await job.stdin.send(LARGE)
    await daemon.aclose()
    assert path.read_bytes() == b"old"
    while len(list(tmp_path.iterdir())) > 1:
        await anyio.lowlevel.checkpoint()
    assert path.read_bytes() == b"old"


async def test_of_two_that_write_a_new_file_the_last_one_wins(
    daemon: Daemon, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    first = daemon.start({"do": "write", "path": str(path), "mode": 0o640})
    await first.stdin.send(b"first")
    assert await write(daemon, path, b"second") == "6"
    await first.stdin.send(COMPLETE)
    await first.stdin.aclose()
    assert await rest(first.report) == "5"
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


async def test_mode_owner_and_attributes_stay(daemon: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    os.setxattr(path, "user.note", b"kept")
    if os.geteuid() == 0:
        os.chown(path, 12345, 54321)
    path.chmod(0o4751)
    before = path.stat()
    assert await write(daemon, path, b"new") == "3"
    after = path.stat()
    assert path.read_bytes() == b"new"
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        before.st_mode,
        before.st_uid,
        before.st_gid,
    )
    assert os.getxattr(path, "user.note") == b"kept"


async def test_other_names_of_a_file_lead_to_the_new_content(
    daemon: Daemon, tmp_path: Path
) -> None:
    path, other = tmp_path / "file", tmp_path / "other"
    path.write_bytes(b"a long old content")
    other.hardlink_to(path)
    assert await write(daemon, path, b"new") == "3"
    assert other.read_bytes() == b"new"
    assert sorted(tmp_path.iterdir()) == [path, other]


async def test_symlinks_stay_and_their_targets_are_written(daemon: Daemon, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (there / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to("there/file")
    (tmp_path / "chain").symlink_to("link")
    (tmp_path / "dangling").symlink_to("there/new")
    for name in ("link", "chain", "dangling"):
        assert await write(daemon, tmp_path / name, name.encode()) == str(len(name))
        assert (tmp_path / name).is_symlink()
    assert (there / "file").read_bytes() == b"chain"
    assert (there / "new").read_bytes() == b"dangling"


async def test_what_admits_no_file_beside_it_is_written_in_place(daemon: Daemon) -> None:
    look = daemon.start(
        {"do": "run", "argv": ["sh", "-c", "echo $PPID"], "env": {}, "cwd": "/", "make_cwd": False}
    )
    path = Path(f"/proc/{await rest(look.stdout)}/oom_score_adj")
    assert await write(daemon, path, b"1") == "1"
    assert path.read_bytes() == b"1\n"


@pytest.mark.usefixtures("ordinary_user")
async def test_a_file_in_a_protected_directory_is_written_in_place(
    daemon: Daemon, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    tmp_path.chmod(0o500)
    try:
        assert await write(daemon, path, b"new") == "3"
        assert path.read_bytes() == b"new"
        assert (await write(daemon, tmp_path / "other", b"new")).startswith("!13 ")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.usefixtures("ordinary_user")
async def test_a_protected_file_is_refused(daemon: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o400)
    assert (await write(daemon, path, b"new")).startswith("!13 ")
    assert path.read_bytes() == b"old"


async def test_a_program_that_runs_can_be_replaced(daemon: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "sleep"
    path.write_bytes(Path("/bin/sleep").read_bytes())
    path.chmod(0o755)
    request: dict[str, Any] = {
        "do": "run",
        "argv": [str(path), "100"],
        "env": {},
        "cwd": "/",
        "make_cwd": False,
    }
    job = daemon.start(request)
    assert not await rest(job.report)
    assert await write(daemon, path, b"#!/bin/sh\n") == "10"
    await job.kill()
