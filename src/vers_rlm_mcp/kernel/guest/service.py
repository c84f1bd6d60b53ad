"""The kernel: performs the host's requests one at a time, on the main thread.

Only there does Python deliver signals, and much code expects to run there. Frames are read by
another thread, so that an interrupt or a reply gets through while a cell runs.
"""

from __future__ import annotations

import builtins
import os
import signal
import sys
import threading
import types
from contextlib import suppress
from math import inf
from queue import Empty, SimpleQueue

from ..wire import FrameError, dump, load
from .capture import Capture
from .concurrency import NAME, Concurrency
from .frames import PROTOCOL
from .functions import Finished, Functions, bind
from .host_calls import Calls
from .host_link import Attachment, Detached, Link
from .memory import MemoryBound
from .variables import Variables
from .workplace import Workplace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from typing import Any, Callable

    from ..wire import Frame

MAX_NAMES = 1000
"""Variables that are named to the host, each by at most `MAX_NAME` characters."""
MAX_NAME = 80

WARM_UP_SECONDS = 0.01
"""How long a new kernel waits for requests before it imports what cells need: a host that wants
variables read asks at once."""

DEFAULT_OUTPUT_LIMIT = 1024 * 1024


def serve(listener: socket, variables_path: str) -> None:
    """Run the kernel behind `listener` until this process is killed."""
    kernel = Kernel(listener, variables_path)
    kernel.serve()


class _Request:
    """A frame that asks for something, and the host that sent it."""

    def __init__(self, frame: Frame, host: Attachment) -> None:
        self.frame = frame
        self.host = host
        self.id = frame.fields.get("id", 0)


class Kernel:
    """The state of the REPL."""

    def __init__(self, listener: socket, variables_path: str) -> None:
        self.id = os.urandom(16).hex()
        self.cells = 0
        self._pid = os.getpid()
        self._main_thread = threading.get_ident()
        self._requests: SimpleQueue[_Request] = SimpleQueue()
        self._running: _Request | None = None
        self._stopped: tuple[Attachment, int] | None = None
        self._interruptible = False
        self._deferred = False
        self._has_paths = False
        self._is_warm = False
        self._limit = DEFAULT_OUTPUT_LIMIT
        self._saving = False
        self._calls = Calls(self._run_uninterrupted)
        self._capture = Capture()
        self._memory = MemoryBound()
        self._namespace = _main_namespace()
        self._workplace = Workplace()
        self._functions = Functions(
            self._namespace, self._calls, self._workplace, self._save_before_copy
        )
        self._declared = b""
        """The functions that the host declared last, as it sent them."""
        self._bound = bind(self._functions, [])
        self._namespace.update(self._bound)
        self._concurrency = self._namespace[NAME] = Concurrency()
        self._variables = Variables(self._namespace, self._bound, variables_path)
        self._link = Link(listener, self)

    def serve(self) -> None:
        """Perform requests until this process is killed."""
        self._capture.start(self._limit)
        signal.signal(signal.SIGINT, self._on_interrupt)
        threading.Thread(target=self._link.serve, daemon=True).start()
        while True:
            try:
                self._perform(self._next_request())
            except KeyboardInterrupt:
                continue  # meant for a request that ended at that very moment

    def _next_request(self) -> _Request:
        """The next request; while there is none, import what the first cell will need."""
        if not self._is_warm:
            with suppress(Empty):
                return self._requests.get(timeout=WARM_UP_SECONDS)
            self._is_warm = True
            _warm_up()
        return self._requests.get()

    # Called by the link, in its thread.

    def attached(self) -> None:
        """Interrupt what the former host asked for."""
        self._interrupt()

    def detached(self) -> None:
        """Fail calls to the former host, which will not answer them."""
        self._calls.fail("the connection to the host was lost")

    def received(self, frame: Frame, host: Attachment) -> None:
        """Act on frames that cannot wait; leave the others to the main thread."""
        if frame.kind == "reply":
            self._calls.reply(frame)
        elif frame.kind == "interrupt":
            running = self._running
            self._stopped = (host, frame.fields["id"])
            if running and self._is_stopped(running):
                self._interrupt()
        elif frame.kind == "current":
            self._functions.current = frame.fields["machine"]
        else:
            self._requests.put(_Request(frame, host))

    def _is_stopped(self, request: _Request) -> bool:
        """Whether the request was interrupted, or its host is gone."""
        return request.host.closed or self._stopped == (request.host, request.id)

    def _interrupt(self) -> None:
        signal.pthread_kill(self._main_thread, signal.SIGINT)

    def _on_interrupt(self, _signal: int, _frame: object) -> None:
        if self._interruptible:
            raise KeyboardInterrupt
        self._deferred = True

    # On the main thread.

    def _perform(self, request: _Request) -> None:
        if request.host.closed:
            return
        if request.frame.kind == "hello":
            self._greet(request)
        elif request.frame.kind == "run":
            self._run(request)
        else:
            self._answer(request)

    def _greet(self, request: _Request) -> None:
        fields = request.frame.fields
        if fields["protocol"] == PROTOCOL:  # of another one, only this field is known
            if self._functions.home not in ("", fields["home"]):
                _reseed()
            self._functions.home, self._functions.current = fields["home"], fields["current"]
            self._limit, self._saving = fields["limit"], fields["saving"]
            self._memory.set(fields["memory"])
        ready = {"protocol": PROTOCOL, "kernel": self.id, "cells": self.cells}
        self._send(request.host, "ready", ready, dump(self._names()))
        self._declare(request.frame.payload)
        if not self._has_paths:
            self._has_paths = True
            _find_modules()

    def _declare(self, functions: bytes) -> None:
        """Let cells call what the host declares, unless they can already."""
        if not functions or functions == self._declared:
            return
        self._declared = functions
        for name, function in bind(self._functions, load(functions)).items():
            # A variable of that name is replaced after the next cell, with a note.
            if self._namespace.get(name) is self._bound.get(name):
                self._namespace[name] = function
            self._bound[name] = function

    def _run(self, request: _Request) -> None:
        host = request.host
        self._functions.final = None
        signal.signal(signal.SIGINT, self._on_interrupt)
        self._capture.begin(
            self._limit,
            lambda data, skipped: self._send(
                host, "output", {"id": request.id, "skipped": skipped}, data
            ),
        )
        self._calls.open(host)
        status, error = self._run_interruptible(request, lambda: self._run_cell(request))
        if os.getpid() != self._pid:
            self._capture.flush()
            os._exit(0)  # a fork that a cell has made and not ended itself
        self._calls.close()
        self._put_functions_back()
        self._capture.finish()
        final = self._functions.final
        value = {
            "status": "final" if final else status,
            "error": None if final else error,
            "final": final,
            "names": self._names(),
        }
        self._done(request, value)

    def _run_cell(self, request: _Request) -> tuple[str, str | None]:
        from .cells import Cell, describe_error

        self.cells = request.frame.fields["cell"]
        try:
            with self._memory.held():
                self._concurrency.functions = self._bound.values()
                cell = Cell(request.frame.payload.decode(), self.cells, self._bound)
                cell.run(self._namespace, self._capture.write)
        except Finished as finished:
            self._functions.final = self._functions.final or finished.args[0]
            return "final", None
        except SystemExit as error:
            said = f"{error.code}\n" if isinstance(error.code, str) else ""
            self._capture.write(f"{said}[exit() ends the cell, not the kernel]\n")
        except KeyboardInterrupt as error:
            return "interrupted", describe_error(error)
        except MemoryError as error:
            return "error", describe_error(error) + self._memory.advice()
        except BaseException as error:  # noqa: BLE001 - whatever a cell raises is its result
            return "error", describe_error(error)
        return "ok", None

    def _answer(self, request: _Request) -> None:
        status, value = self._run_interruptible(
            request, lambda: ("ok", self._operate(request.frame))
        )
        self._done(request, value, ok=status == "ok")

    def _operate(self, frame: Frame) -> Any:
        fields = frame.fields
        if frame.kind == "load":
            return self._variables.load(fields["name"], fields["path"], fields["form"])
        if frame.kind == "save":
            return self._save(fields["most"] or inf)
        if frame.kind == "restore":
            return self._restore()
        return self._variables.listing()

    def _restore(self) -> dict[str, Any]:
        """Read saved variables back, unless this kernel has its own, which are newer."""
        if self.cells or self._names():
            return {"kept": [], "lost": {}}
        return self._variables.restore()

    def _run_interruptible(
        self, request: _Request, act: Callable[[], tuple[str, Any]]
    ) -> tuple[str, Any]:
        """Act in the directory of cells. Until the end an interrupt raises KeyboardInterrupt."""
        with self._workplace.entered():
            try:
                self._running = request
                self._interruptible = True
                if self._is_stopped(request):  # before it could be interrupted
                    raise KeyboardInterrupt
                return act()
            except KeyboardInterrupt:
                return "interrupted", "interrupted"
            except Exception as error:  # noqa: BLE001 - saving and listing run the code of any class
                return "error", f"{type(error).__name__}: {error}"[:1000]
            finally:
                self._interruptible = False
                self._running = None

    def _run_uninterrupted(self, act: Callable[[], None]) -> None:
        """Act without being interrupted; an interrupt is raised right after."""
        if threading.get_ident() != self._main_thread:
            act()
            return
        self._deferred = self._interruptible = False
        try:
            act()
        finally:
            self._interruptible = True
        if self._deferred:
            raise KeyboardInterrupt

    def _put_functions_back(self) -> None:
        for name, function in self._bound.items():
            if self._namespace.get(name) is not function:
                self._namespace[name] = function
                self._capture.write(
                    f"[{name} is a function of this REPL and was put back; "
                    "use another name for your variable]\n"
                )

    def _names(self) -> list[str]:
        return [name[:MAX_NAME] for name in self._variables.names()[:MAX_NAMES]]

    def _save_before_copy(self) -> dict[str, Any] | None:
        return self._save() if self._saving else None

    def _save(self, most: float = inf) -> dict[str, Any]:
        with self._memory.held():  # a MemoryError costs one variable, and the system's killer all
            saved = self._variables.save(most)
        lost = list(saved["lost"].items())[:MAX_NAMES]
        return {
            "kept": [name[:MAX_NAME] for name in saved["kept"][:MAX_NAMES]],
            "lost": {name[:MAX_NAME]: reason for name, reason in lost},
        }

    def _done(self, request: _Request, value: Any, *, ok: bool = True) -> None:
        try:
            payload = dump(value) if ok else value.encode(errors="replace")
        except FrameError as error:
            text = f"the result is too large to hand over: {error}; write it to a file instead"
            ok, payload = False, text.encode()
        self._send(request.host, "done", {"id": request.id, "ok": ok}, payload)

    @staticmethod
    def _send(host: Attachment, kind: str, fields: dict[str, Any], payload: bytes) -> None:
        with suppress(Detached):  # no host is left to tell
            host.send(kind, fields, payload)


def _main_namespace() -> dict[str, Any]:
    """The namespace of cells, which is the module `__main__` to pickle, inspect and others."""
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = main
    sys.argv = [""]
    return main.__dict__


def _reseed() -> None:
    """Draw other random numbers than the process that this one is a copy of, and other copies."""
    for name in ("random", "numpy.random", "torch"):
        with suppress(Exception):  # not loaded, or a cell has put something else there
            sys.modules[name].seed()


def _find_modules() -> None:
    """Set up the usual module search path. The host does not wait for this."""
    import site

    sys.path.pop(0)  # the archive; the rest of it is found through the package
    site.main()
    sys.path.insert(0, "")


def _warm_up() -> None:
    """Import what the first cell needs."""
    import importlib

    for module in ("cells", "commands"):
        importlib.import_module(f".{module}", __package__)
