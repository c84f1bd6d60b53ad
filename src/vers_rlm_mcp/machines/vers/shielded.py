"""Calls that are not cancelled half-way, and calls that are made at the same time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

import anyio
from anyio import lowlevel

from vers_rlm_mcp.errors import MachineError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

T = TypeVar("T")

AT_ONCE: Final = 8
"""Enough that waits overlap, few enough for a service's rate limit."""


async def finish_or_undo(
    call: Callable[[], Awaitable[T]],
    undo: Callable[[T], Awaitable[object]] | None = None,
    *,
    seconds: float,
    is_worthwhile: Callable[[], Awaitable[bool]] | None = None,
) -> T:
    """Make a call that, when cancelled, is given time to finish, and is then undone.

    For calls that would leave something unknown behind if they stopped half-way.

    Args:
        call: Must end by itself.
        undo: Reverses its result. Shielded, so it must end by itself, too.
        seconds: How long the call may continue after it was cancelled.
        is_worthwhile: Asked then: if it says no, the call is stopped at once. Must end by itself.
    """
    results: list[T] = []
    failures: list[Exception] = []
    finished = anyio.Event()
    scope = anyio.CancelScope(shield=True)

    async def run() -> None:
        with scope:
            try:
                results.append(await call())
            except Exception as error:  # noqa: BLE001 - raised below, where no group wraps it
                failures.append(error)
        finished.set()

    await lowlevel.checkpoint_if_cancelled()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        try:
            await finished.wait()
        except anyio.get_cancelled_exc_class():
            scope.deadline = anyio.current_time() + seconds
            with anyio.CancelScope(shield=True):
                if is_worthwhile and not await is_worthwhile():
                    scope.cancel()
                await finished.wait()
                if undo and results:
                    await undo(results[0])
            raise
    if failures:
        raise failures[0]
    return results[0]


async def run_all(calls: Sequence[Callable[[], Awaitable[object]]]) -> None:
    """Make calls concurrently, at most `AT_ONCE`; the first `MachineError` cancels the others."""
    limiter = anyio.CapacityLimiter(AT_ONCE)
    failures: list[MachineError] = []

    async def run(call: Callable[[], Awaitable[object]]) -> None:
        try:
            async with limiter:
                await call()
        except MachineError as error:
            failures.append(error)
            tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        for call in calls:
            tasks.start_soon(run, call)
    if failures:
        raise failures[0]
