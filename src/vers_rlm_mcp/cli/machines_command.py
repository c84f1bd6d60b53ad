"""`vers-rlm-mcp machines`: lists, deletes, compares and sweeps machines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vers_rlm_mcp import runs
from vers_rlm_mcp.errors import InputError
from vers_rlm_mcp.machines import open_fleet

from .terminal import format_age, format_table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from vers_rlm_mcp.machines import Fleet, Item
    from vers_rlm_mcp.settings import Settings


async def manage_machines(options: argparse.Namespace, settings: Settings) -> int:
    """List, delete or compare machines and commits, or sweep those left by dead servers."""
    action: str = options.action
    ids: list[str] = options.ids
    if action == "delete" and not ids:
        raise InputError("Name the machines and commits to delete; `machines list` shows them.")
    if action == "diff" and len(ids) != 2:
        raise InputError("Name two machines or commits to compare; `machines list` shows them.")
    if action in ("list", "sweep") and ids:
        raise InputError(f"`machines {action}` takes no ids.")
    async with open_fleet(settings) as fleet:
        if action == "delete":
            await _delete(fleet, ids)
        elif action == "diff":
            bench = runs.Workbench(fleet, settings)
            print((await runs.compare(bench, *ids)).text)
            await bench.aclose()
        elif action == "sweep":
            swept = await fleet.sweep()
            print(f"deleted {', '.join(swept)}" if swept else "nothing to sweep")
        else:
            print(_format_machines(await fleet.inventory()))
    return 0


async def _delete(fleet: Fleet, ids: Sequence[str]) -> None:
    recorded = fleet.ledger.commits(fleet.backend.name)  # also one whose own record is damaged
    commits = {commit.id for commit in [*await fleet.commits(), *recorded]}
    for item in ids:
        await (fleet.delete_commit(item) if item in commits else fleet.delete(item))
        print(f"deleted {item}")


def _format_machines(items: Sequence[Item]) -> str:
    if not items:
        return "no machines and no commits"
    rows = [
        (item.id, format_age(item.created_at), item.state, item.parent or "-", item.run or "-")
        for item in items
    ]
    return format_table([("ID", "AGE", "STATE", "FROM", "RUN"), *rows])
