"""`vers-rlm-mcp machines`: lists, uses, compares, deletes and sweeps machines."""

from __future__ import annotations

import contextlib
import os
import posixpath
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from anyio import to_thread

from vers_rlm_mcp import runs
from vers_rlm_mcp.errors import InputError, PathRefused
from vers_rlm_mcp.machines import WORKSPACE, describe_strays, open_fleet, shell, upload
from vers_rlm_mcp.store import in_thread, written_whole

from .terminal import format_age, format_table, print_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import SimpleNamespace

    from anyio.abc import ByteReceiveStream, ByteSendStream

    from vers_rlm_mcp.machines import Item
    from vers_rlm_mcp.settings import Settings

CHUNK = 64 * 1024
"""Bytes that are passed on at a time."""


async def list_all(settings: Settings, options: SimpleNamespace) -> None:
    """List machines and commits."""
    async with open_fleet(settings) as fleet:
        items = await fleet.inventory()
    if options.as_json:
        print_json([asdict(item) for item in items])
    else:
        print(_format_machines(items))


async def delete(settings: Settings, options: SimpleNamespace) -> None:
    """Delete machines and commits."""
    async with open_fleet(settings) as fleet:
        # Also one whose own record is damaged.
        recorded = await in_thread(fleet.ledger.commits, fleet.backend.name)
        commits = {commit.id for commit in [*await fleet.commits(), *recorded]}
        for item in options.ids:
            await (fleet.delete_commit(item) if item in commits else fleet.delete(item))
            print(f"deleted {item}")


async def compare(settings: Settings, options: SimpleNamespace) -> None:
    """Show the differences between two machines or commits."""
    async with open_fleet(settings) as fleet:
        bench = runs.Workbench(fleet, settings)
        print((await runs.compare(bench, options.a, options.b)).text)
        await bench.aclose()


async def sweep_all(settings: Settings, _: SimpleNamespace) -> None:
    """Delete what servers that died have left."""
    async with open_fleet(settings) as fleet:
        swept = await fleet.sweep(patient=True)
    print(f"deleted {', '.join(swept)}" if swept else "nothing to sweep")


async def execute(settings: Settings, options: SimpleNamespace) -> int:
    """Run a command in a machine, its output passed on as it comes, and return its exit code."""
    words: list[str] = list(options.command)
    argv = shell(words[0]) if len(words) == 1 else words
    async with (
        open_fleet(settings) as fleet,
        await (await fleet.attach(options.vm_id)).spawn(argv, cwd=options.cwd) as process,
    ):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_send_input, process.stdin)
            async with anyio.create_task_group() as outputs:
                outputs.start_soon(_print_all, process.stdout, sys.stdout.fileno())
                outputs.start_soon(_print_all, process.stderr, sys.stderr.fileno())
            tasks.cancel_scope.cancel()
        status = await process.wait()
    return status.code if status.code is not None else 128 + (status.signal or 0)


async def copy(settings: Settings, options: SimpleNamespace) -> None:
    """Copy a file into a machine or out of it."""
    source, target = _split_place(options.source), _split_place(options.target)
    async with open_fleet(settings) as fleet:
        if target and not source:
            machine_id, path = target
            name = f"{path}{Path(options.source).name}" if path.endswith("/") else path
            machine = await fleet.attach(machine_id)
            size = await upload(machine, Path(options.source), posixpath.join(WORKSPACE, name))
        elif source and not target:
            machine_id, path = source
            place = _place(options.target, posixpath.basename(path), replace=options.force)
            async with await (await fleet.attach(machine_id)).read(
                posixpath.join(WORKSPACE, path)
            ) as stream:
                size = await _download(stream, place)
        else:
            raise InputError("Write one of the two as ID:PATH; `machines list` shows the ids.")
    print(f"copied {size:,} bytes")


def _place(path: str, name: str, *, replace: bool) -> Path:
    """Where a file of this name goes on this computer. Raises `PathRefused` if it is there."""
    place = Path(path).expanduser()
    if place.is_dir():
        place /= name
    if not replace and place.exists():
        raise PathRefused(f"{place} exists; --force replaces it.")
    return place


async def _download(stream: ByteReceiveStream, target: Path) -> int:
    """Write a file of a machine to this computer, whole or not at all. Returns its size."""
    size = 0
    try:
        with written_whole(target) as file:
            async for chunk in stream:
                file.write(chunk)
                size += len(chunk)
    except OSError as error:
        raise PathRefused(f"{target} cannot be written: {error.strerror}.") from None
    return size


def _split_place(text: str) -> tuple[str, str] | None:
    """A machine's id and a path in it, from ``ID:PATH``; None for a path of this computer."""
    name, colon, path = text.partition(":")
    return (name, path) if colon and path and "/" not in name and not Path(text).exists() else None


async def _send_input(target: ByteSendStream) -> None:
    """Send this command's standard input on; a terminal's is not read."""
    source = None if sys.stdin.isatty() else sys.stdin.buffer
    with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
        while source:
            data = await to_thread.run_sync(os.read, source.fileno(), CHUNK, abandon_on_cancel=True)
            if not data:
                break
            await target.send(data)
        await target.aclose()


async def _print_all(stream: ByteReceiveStream, target: int) -> None:
    """Pass a stream on to a descriptor. If its reader leaves, the command ends, as in a pipe."""
    async for data in stream:
        try:
            rest = data
            while rest:
                rest = rest[await to_thread.run_sync(os.write, target, rest) :]
        except OSError:
            break
    await stream.aclose()


def _format_machines(items: Sequence[Item]) -> str:
    if not items:
        return "no machines and no commits"
    rows = [
        (item.id, format_age(item.created_at), item.state, item.parent or "-", item.run or "-")
        for item in items
    ]
    table = format_table([("ID", "AGE", "STATE", "FROM", "RUN"), *rows])
    strays = [item.id for item in items if item.is_stray]
    return f"{table}\n{describe_strays(strays)}" if strays else table
