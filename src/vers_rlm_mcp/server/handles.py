"""What an id stands for that a call gave in vain: something else, or something that is gone."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from .bounds import utc

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vers_rlm_mcp.machines import Fleet

    from .application import Application

RUN, VM, COMMIT = (
    "a run: rlmResult takes it as runId",
    "a VM",
    "a commit: vmRestore makes a VM of it",
)


async def explain_handles(app: Application, text: str, arguments: Mapping[str, object]) -> str:
    """A sentence on each id that an error is about, and that is known to be something else.

    Args:
        app: Whose machines, commits and runs these are.
        text: The error.
        arguments: The arguments of the call.
    """
    handles = [handle for handle in _strings(arguments.values()) if repr(handle) in text]
    sentences = [await _explain(app, handle) for handle in dict.fromkeys(handles)]
    return " ".join(sentence for sentence in sentences if sentence)


async def _explain(app: Application, handle: str) -> str:
    fleet = await app.fleet()
    if handle in await app.run_ids():
        return f"{handle} is {RUN}."
    commits = await fleet.commits()
    if handle in {commit.id for commit in commits}:
        return f"{handle} is {COMMIT}."
    if handle in {info.id for info in await fleet.list()}:
        return f"{handle} is {VM}."
    return _explain_deleted(fleet, handle, [it.id for it in commits if it.machine_id == handle])


def _explain_deleted(fleet: Fleet, handle: str, remaining: list[str]) -> str:
    name = fleet.backend.name
    for record in fleet.ledger.machines(name, handle):
        mine = fleet.principal in (None, record.principal)
        if record.deleted_at and mine:
            run = f", with its run {record.run}" if record.run else ""
            left = f" Its commits are left: {', '.join(remaining)}." if remaining else ""
            return f"The VM {handle} was deleted at {utc(record.deleted_at)}{run}.{left}"
    for commit in fleet.ledger.commits(name):
        mine = fleet.principal in (None, commit.principal)
        if commit.id == handle and commit.deleted_at and mine:
            return f"The commit {handle} was deleted at {utc(commit.deleted_at)}."
    return ""


def _strings(values: Iterable[object]) -> list[str]:
    found: list[str] = []
    for value in values:
        found += [value] if isinstance(value, str) else []
        found += _strings(cast("list[object]", value)) if isinstance(value, list) else []
    return found
