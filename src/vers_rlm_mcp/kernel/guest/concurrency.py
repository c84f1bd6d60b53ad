"""What the code of cells calls where `compiler` has found that a result is awaited."""

from __future__ import annotations

import sys
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor
    from typing import Any, Callable, Collection, Iterator

NAME = "__concurrent__"
"""Where the namespace of cells holds `Concurrency`."""

WIDTH = 64
"""Threads that wait for calls: more than the host answers at once."""


class Concurrency:
    """Starts calls of functions of the REPL in threads, and lets plain values be awaited."""

    def __init__(self) -> None:
        self.functions: Collection[Any] = ()
        """The functions of the REPL."""
        self._threads: ThreadPoolExecutor | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _of_this_kernel, ()  # functions of cells refer to it, and are saved for copies

    def start(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Start a call and return what can be awaited; another function is just called."""
        if function not in self.functions:
            return function(*args, **kwargs)
        import asyncio

        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return self._start_later(function, args, kwargs)
        cancelled = threading.Event()

        def call() -> Any:
            _here.cancelled = cancelled
            return function(*args, **kwargs)

        future = loop.run_in_executor(self._executor(), call)
        future.add_done_callback(lambda done: cancelled.set() if done.cancelled() else None)
        return future

    def starter(self, function: Any) -> Callable[..., Any]:
        """A function that starts calls of `function`, as in ``map(llmQuery, prompts)``."""
        return lambda *args, **kwargs: self.start(function, *args, **kwargs)

    def awaitable(self, value: Any) -> Any:
        """`value` if it can be awaited; else something that gives it when awaited."""
        return value if _is_awaitable(value) else _Settled(value)

    def combine(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a function of asyncio, which may be given plain values in place of awaitables."""
        owner: Any = getattr(function, "__self__", None)
        module = getattr(function if owner is None else owner.__class__, "__module__", "") or ""
        if module.partition(".")[0] not in ("asyncio", "uvloop"):
            return function(*args, **kwargs)
        name = function.__name__
        if name in ("create_task", "run"):
            args = (_coroutine(args[0]), *args[1:]) if args else args
            return function(
                *args, **{k: _coroutine(v) if k == "coro" else v for k, v in kwargs.items()}
            )
        if name in ("as_completed", "wait") and args:
            # Equal values are not one: each becomes a future of its own.
            return function([self._future(each) for each in args[0]], *args[1:], **kwargs)
        if name == "gather":
            return function(*map(self.awaitable, args), **kwargs)
        return function(*([self.awaitable(args[0]), *args[1:]] if args else ()), **kwargs)

    @staticmethod
    def _future(value: Any) -> Any:
        if _is_awaitable(value):
            return value
        import asyncio

        future = asyncio.get_event_loop().create_future()
        future.set_result(value)
        return future

    async def _start_later(self, function: Any, args: Any, kwargs: Any) -> Any:
        return await self.start(function, *args, **kwargs)

    def _executor(self) -> ThreadPoolExecutor:
        if self._threads is None:
            from concurrent.futures import ThreadPoolExecutor

            self._threads = ThreadPoolExecutor(WIDTH, "call")
        return self._threads


_here = threading.local()


def is_cancelled() -> bool:
    """Whether nothing waits any more for the call that runs in this thread."""
    cancelled = getattr(_here, "cancelled", None)
    return cancelled is not None and cancelled.is_set()


def _of_this_kernel() -> Any:
    return sys.modules["__main__"].__dict__[NAME]


class _Settled:
    """A value that can be awaited."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __await__(self) -> Iterator[Any]:
        return self._value
        yield  # makes this a generator


def _is_awaitable(value: Any) -> bool:
    import inspect

    return inspect.isawaitable(value)


def _coroutine(value: Any) -> Any:
    import asyncio

    return value if asyncio.iscoroutine(value) else _wait_for(value)


async def _wait_for(value: Any) -> Any:
    return await value if _is_awaitable(value) else value
