"""A run as an asynchronous iterator over its events."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import anyio

from vers_rlm_mcp.events import Event

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    from anyio.abc import TaskGroup
    from anyio.streams.memory import MemoryObjectSendStream

    from vers_rlm_mcp.runs import RunResult

    Perform = Callable[[Callable[[Event], None]], Awaitable[RunResult]]


class RunStream:
    """A run under way: iterate over it for its events, or await it for its result."""

    def __init__(self, tasks: TaskGroup, perform: Perform) -> None:
        # Unbounded, since a run waits for no reader: it holds no more than the run's own record.
        send, self._receive = anyio.create_memory_object_stream[Event](math.inf)
        self._ending = _Ending()
        self._scope = anyio.CancelScope()
        tasks.start_soon(_feed, self._scope, perform, send, self._ending)

    @property
    def result(self) -> RunResult:
        """The result. Raises `RuntimeError` before every event was read, or if it was cancelled."""
        if self._ending.result is None:
            raise RuntimeError("The run has no result: read its events to the end first.")
        return self._ending.result

    def __await__(self) -> Generator[Any, Any, RunResult]:
        """Wait for the result; cancelling that cancels the run."""
        return self._read_to_the_end().__await__()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """The next event. Raises what the run raises, after its last event."""
        try:
            return await self._receive.receive()
        except anyio.EndOfStream:
            if self._ending.error:
                raise self._ending.error from None
            raise StopAsyncIteration from None

    async def _read_to_the_end(self) -> RunResult:
        async with self:
            async for _ in self:
                pass
        return self.result

    def close(self) -> None:
        """Cancel the run if it is under way; its machines are deleted in the background."""
        self._receive.close()
        if not self._ending.reached:  # there may be no event loop any more
            self._scope.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # A loop that is left with `break` drops the stream: no one would see what is paid for.
        self.close()


@dataclass(slots=True)
class _Ending:
    """How a streamed run ended: apart from the stream, which the run must not keep alive."""

    reached: bool = False
    result: RunResult | None = None
    error: Exception | None = None


async def _feed(
    scope: anyio.CancelScope,
    perform: Perform,
    send: MemoryObjectSendStream[Event],
    ending: _Ending,
) -> None:
    """Perform a run, sending its events."""

    def publish(event: Event) -> None:
        with suppress(anyio.BrokenResourceError):  # no one reads any more: it is being cancelled
            send.send_nowait(event)

    with scope, send:
        try:
            ending.result = await perform(publish)
        except Exception as error:  # noqa: BLE001 - raised to the reader, after the last event
            ending.error = error
        finally:
            ending.reached = True
