"""What a machine promises about files."""

from __future__ import annotations

import hashlib
import os
import random
import tempfile
from typing import TYPE_CHECKING, Final

import anyio

from vers_rlm_mcp.errors import MachineFull, PathRefused
from vers_rlm_mcp.machines import MachineSpec, read_bytes

from .lab import (
    COMMAND_SECONDS,
    END_SECONDS,
    MIB,
    CheckFailed,
    Lab,
    MemoryMeter,
    check,
    check_if,
    content,
    expect,
    expect_equal,
    expect_error,
    isolation,
    limited,
    run,
    sh,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from vers_rlm_mcp.machines import Machine

LARGE: Final = 100
"""MiB of the file that is streamed: more than memory may grow by."""

ODD_NAMES: Final = (
    "with space",
    "quote ' and \"",
    "$(touch pwned)",
    "`touch pwned`",
    "; touch pwned #",
    "new\nline",
    "tab\tand\rreturn",
    "-rf",
    "--",
    "*",
    "~",
    "...",
    "back\\slash",
    "ünïcödé",
    "x" * 255,
    os.fsdecode(b"\xff\xfe not UTF-8"),
)

SLICES: Final = (
    (0, None, b"0123456789"),
    (0, 0, b""),
    (0, 4, b"0123"),
    (3, 4, b"3456"),
    (8, 100, b"89"),
    (10, None, b""),
    (100, 5, b""),
    (-3, None, b"789"),
    (-3, 2, b"78"),
    (-100, 2, b"01"),
)


@check
async def content_is_exact(lab: Lab) -> None:
    """What is written is read back byte for byte: empty, binary, a megabyte."""
    machine = await lab.create()
    for data in (b"", b"\n", bytes(range(256)) * 3, random.Random(2).randbytes(MIB)):  # noqa: S311 - test data
        written = await machine.write("/workspace/file", data)
        expect_equal(written, len(data), "the size that write returns")
        expect(await content(machine, "/workspace/file") == data, f"{len(data)} bytes changed")


@check
async def large_files_are_streamed(lab: Lab) -> None:
    """A hundred megabytes are written and read in constant memory."""
    machine = await lab.create()
    sent, received = hashlib.sha256(), hashlib.sha256()

    async def source() -> AsyncIterator[bytes]:
        block = random.Random(3).randbytes(MIB)  # noqa: S311 - test data
        for number in range(LARGE):
            chunk = number.to_bytes(8, "big") + block[8:]
            sent.update(chunk)
            yield chunk

    with MemoryMeter(), anyio.fail_after(2 * COMMAND_SECONDS):
        written = await machine.write("/workspace/large", source())
        async with await machine.read("/workspace/large") as stream:
            async for chunk in stream:
                received.update(chunk)
    expect_equal(written, LARGE * MIB, "the size that write returns")
    expect_equal(received.hexdigest(), sent.hexdigest(), "the checksum")


@check
async def slices_are_exact(lab: Lab) -> None:
    """Reading honours offset and length, and counts a negative offset from the end."""
    machine = await lab.create()
    await machine.write("/workspace/digits", b"0123456789")
    for offset, length, wanted in SLICES:
        seen = b""
        async with await machine.read("/workspace/digits", offset=offset, length=length) as stream:
            async for chunk in stream:
                seen += chunk
            await expect_error(anyio.EndOfStream, stream.receive(), "reading on at the end")
        expect_equal(seen, wanted, f"offset {offset}, length {length}")


@check
async def a_read_can_be_abandoned(lab: Lab) -> None:
    """Closing a stream before its end does no harm."""
    machine = await lab.create()
    await machine.write("/workspace/file", bytes(8 * MIB))
    stream = await machine.read("/workspace/file")
    await stream.receive()
    await stream.aclose()
    await expect_error(anyio.ClosedResourceError, stream.receive(), "reading what is closed")
    expect_equal(await sh(machine, "wc -c < file"), f"{8 * MIB}\n", "the file afterwards")


@check
async def names_are_only_names(lab: Lab) -> None:
    """Names may hold spaces, quotes, `$()`, newlines, dashes and bytes that are not UTF-8."""
    machine = await lab.create()
    for number, name in enumerate(ODD_NAMES):
        path = f"/workspace/odd/{name}"
        await machine.write(path, b"%d" % number)
        expect_equal(await content(machine, path), b"%d" % number, f"the content of {name!r}")
        shown = await run(machine, ["cat", path])
        expect_equal(shown.stdout.data, b"%d" % number, f"what a program reads from {name!r}")
    listed = await run(machine, ["find", "/workspace", "-type", "f", "-print0"])
    names = {os.fsdecode(path).rpartition("/odd/")[2] for path in listed.stdout.data.split(b"\0")}
    expect_equal(names - {""}, set(ODD_NAMES), "the files that are there")


@check
async def reading_refuses_what_is_no_file(lab: Lab) -> None:
    """Reading a FIFO, directory, device, missing or malformed path is refused at once."""
    machine = await lab.create()
    await sh(
        machine, "mkfifo fifo; mkdir dir; ln -s nowhere dangling; ln -s loop loop; echo > file"
    )
    names = ("missing", "fifo", "dir", "dangling", "loop", "file/below", "nul\0", "n" * 300)
    for path in (*(f"/workspace/{name}" for name in names), "/dev/zero", "relative", ""):
        error = await expect_error(PathRefused, machine.read(path), f"reading {path[:40]!r}")
        expect(repr(path)[1:-1] in str(error), f"the error does not name {path!r}: {error}")


@check
async def writing_refuses_what_is_no_file(lab: Lab) -> None:
    """Writing a FIFO, directory, device or malformed path is refused at once, without harm."""
    machine = await lab.create()
    await sh(machine, "mkfifo fifo; mkdir dir; ln -s loop loop; echo content > file")
    names = ("fifo", "dir", "dir/", "loop", "file/below", "nul\0", "n" * 300)
    for path in (*(f"/workspace/{name}" for name in names), "/dev/null", "relative", ""):
        error = await expect_error(PathRefused, machine.write(path, b"x"), f"writing {path[:40]!r}")
        expect(repr(path)[1:-1] in str(error), f"the error does not name {path!r}: {error}")
    await sh(machine, "test -p fifo; test -d dir; test -c /dev/null")
    expect_equal(await content(machine, "/workspace/file"), b"content\n", "the file in the way")


@check
async def parents_are_made(lab: Lab) -> None:
    """Writing makes missing parent directories."""
    machine = await lab.create()
    await machine.write("/workspace/a/b c/d/file", b"deep")
    expect_equal(await sh(machine, "cat 'a/b c/d/file'"), "deep", "the file")


@check
async def modes_are_kept(lab: Lab) -> None:
    """A new file gets the given mode. An existing one keeps its own."""
    machine = await lab.create()
    for mode in (0o644, 0o600, 0o755, 0o666):
        await machine.write(f"/workspace/{mode:o}", b"1", mode=mode)
        await machine.write(f"/workspace/{mode:o}", b"2", mode=0o640)
    seen = await sh(machine, "stat -c '%a' 644 600 755 666")
    expect_equal(seen.split(), ["644", "600", "755", "666"], "the modes")
    await machine.write("/workspace/script", b"#!/bin/sh\necho ran\n", mode=0o755)
    expect_equal(await sh(machine, "./script"), "ran\n", "a program that was written")


@check
async def writing_replaces(lab: Lab) -> None:
    """Writing leaves nothing of a longer old content."""
    machine = await lab.create()
    await machine.write("/workspace/file", b"a long old content")
    await machine.write("/workspace/file", b"new")
    expect_equal(await content(machine, "/workspace/file"), b"new", "the content")


@check
async def a_broken_write_leaves_the_old_content(lab: Lab) -> None:
    """A write that breaks, or is cancelled, leaves the file as it was, and nothing beside it."""
    machine = await lab.create()
    await sh(machine, "mkdir place; echo old > place/file; ln -s place/file link")
    half_way = anyio.Event()

    async def breaking() -> AsyncIterator[bytes]:
        yield bytes(MIB)
        raise ConnectionError("the source broke")

    async def waiting() -> AsyncIterator[bytes]:
        yield bytes(MIB)
        half_way.set()
        await anyio.sleep_forever()

    for path in ("/workspace/place/file", "/workspace/link", "/workspace/place/new"):
        write = machine.write(path, breaking())
        await expect_error(ConnectionError, write, "a write whose source broke")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(machine.write, "/workspace/place/file", waiting())
        await half_way.wait()
        expect_equal(await sh(machine, "cat place/file"), "old\n", "the content during a write")
        tasks.cancel_scope.cancel()
    with anyio.fail_after(END_SECONDS):
        while (found := await sh(machine, "ls -A place; cat link")) != "file\nold\n":
            expect("new" not in found, "a new file is there with half of its content")
            await anyio.sleep(0.01)


@check
async def readers_see_the_old_or_the_new_content(lab: Lab) -> None:
    """While a file is written again and again, each read finds one whole content."""
    machine = await lab.create()
    contents = [bytes([letter]) * MIB for letter in b"abc"]
    await machine.write("/workspace/file", contents[0])
    script = "for i in $(seq 20); do cksum < file; done | sort -u | wc -l"
    async with await machine.spawn(["sh", "-c", script]) as process:
        for data in contents * 3:
            await machine.write("/workspace/file", data)
        with anyio.fail_after(COMMAND_SECONDS):
            seen = int(await process.stdout.receive())
    expect(seen <= len(contents), "a reader saw a part of a file")


@check
async def symlinks_are_followed(lab: Lab) -> None:
    """Reading and writing follow symlinks."""
    machine = await lab.create()
    await sh(machine, "mkdir -p real; echo old > real/file; ln -s real/file link; ln -s real there")
    expect_equal(await content(machine, "/workspace/link"), b"old\n", "what is read through a link")
    await machine.write("/workspace/link", b"new")
    await machine.write("/workspace/there/other", b"inside")
    expect_equal(await sh(machine, "test -L link; cat real/*"), "newinside", "the real files")


@check_if(isolation)
async def symlinks_stay_inside(lab: Lab) -> None:
    """An absolute symlink leads to a file of the machine, never to one of the host."""
    machine = await lab.create()
    await sh(machine, "echo inside > file; ln -s /workspace/file absolute")
    expect_equal(await content(machine, "/workspace/absolute"), b"inside\n", "an absolute link")
    with tempfile.NamedTemporaryFile(prefix="host secret ") as secret:
        await sh(machine, 'ln -s "$1" out; ln -s "../../../../../..$1" up', secret.name)
        for path in (secret.name, "/workspace/out", "/workspace/up"):
            await expect_error(PathRefused, machine.read(path), "reading a file of the host")


@check
async def programs_and_transfers_agree(lab: Lab) -> None:
    """Programs see what was written, and reading sees what they wrote, immediately."""
    machine = await lab.create()
    for number in range(5):
        await machine.write("/workspace/in", b"%d" % number)
        await sh(machine, "cat in in > out")
        expect_equal(await content(machine, "/workspace/out"), b"%d" % number * 2, "the output")


@check
async def transfers_may_be_concurrent(lab: Lab) -> None:
    """Ten files are written and read concurrently."""
    machine = await lab.create()

    async def round_trip(number: int) -> None:
        data = random.Random(number).randbytes(MIB)  # noqa: S311 - test data
        await machine.write(f"/workspace/{number}", data)
        expect(await content(machine, f"/workspace/{number}") == data, "contents were mixed up")

    with anyio.fail_after(COMMAND_SECONDS):
        async with anyio.create_task_group() as tasks:
            for number in range(10):
                tasks.start_soon(round_trip, number)


@check
async def a_broken_source_does_no_harm(lab: Lab) -> None:
    """An error of the source of a write is raised. The machine remains usable."""
    machine = await lab.create()

    async def source() -> AsyncIterator[bytes]:
        yield bytes(MIB)
        raise ConnectionError("the source broke")

    write = machine.write("/workspace/file", source())
    await expect_error(ConnectionError, write, "a write whose source broke")
    await machine.write("/workspace/file", b"whole")
    expect_equal(await content(machine, "/workspace/file"), b"whole", "the next write")


@check_if(isolation)
async def files_of_the_host_are_hidden(lab: Lab) -> None:
    """A machine sees no private file of the host. It may have one of the same name."""
    machine = await lab.create()
    with tempfile.NamedTemporaryFile() as secret:
        secret.write(b"secret")
        secret.flush()
        for path in (secret.name, "/etc/shadow", "/etc/ssh/ssh_host_rsa_key"):
            await _expect_hidden(machine, path)


@check_if(limited("disk"))
async def a_full_disk_is_reported(lab: Lab) -> None:
    """A write that does not fit raises MachineFull. The machine remains usable."""
    machine = await lab.create(MachineSpec(fs_size_mib=64))

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(4096):
            yield bytes(MIB)

    await expect_error(MachineFull, machine.write("/workspace/big", endless()), "4 GiB in 64 MiB")
    await sh(machine, "rm -f big")
    await _expect_room(machine, "/workspace/small", b"fits")
    expect_equal(await read_bytes(machine, "/workspace/small", length=10), b"fits", "a small file")


async def _expect_room(machine: Machine, path: str, data: bytes) -> None:
    """Write what fits, once the backend has noticed that there is room."""
    with anyio.move_on_after(END_SECONDS):
        while True:
            try:
                await machine.write(path, data)
            except MachineFull:
                await anyio.sleep(0.05)
            else:
                return
    raise CheckFailed("a full machine stays full after its files were deleted")


async def _expect_hidden(machine: Machine, path: str) -> None:
    try:
        seen, secret = await content(machine, path), await anyio.Path(path).read_bytes()
    except (PathRefused, OSError):
        return
    expect(not seen or seen != secret, f"the host's {path} can be read in the machine")
