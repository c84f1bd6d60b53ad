"""Captures standard output and error, written by Python, C code or a child process.

Both descriptors lead into one pipe, so that the order of writing is kept. A thread empties it, so
that no writer is stalled; the first bytes of a cell's output are sent on at once, of the
rest only the end is kept.
"""

from __future__ import annotations

import fcntl
import os
import select
import sys
import threading
import time
from contextlib import suppress

from .memory import lift

TYPE_CHECKING = False
if TYPE_CHECKING:
    import io
    from typing import Callable

    Send = Callable[[bytes, int], None]

PIPE_SIZE = 1024 * 1024
"""The most a pipe may hold without privileges; a writer is stalled when it is full."""

GATHER_SECONDS = 0.005
"""Between two looks at a pipe that fills slowly, so that a printing loop keeps the interpreter."""

LOCK_SECONDS = 0.1
"""A signal handler may have interrupted the holder of the lock and would wait for itself."""

BULK = 64 * 1024
"""Bytes of a cell's output after which lines are no longer written one by one, which costs ten
times as much: of so many lines none is awaited by itself."""

_STARTS_CHILD = frozenset({"os.exec", "os.fork", "os.posix_spawn", "os.system", "subprocess.Popen"})
"""Audit events before something else may write to the same pipe, or would inherit the buffers."""


class HeadTail:
    """The first and the last bytes of a stream, in memory of at most twice `limit`."""

    def __init__(self, limit: int) -> None:
        self.total = 0
        self.head = bytearray()
        self._head_limit = limit - limit // 2
        self._tail = bytearray()
        self._tail_limit = limit // 2

    def add(self, data: bytes) -> None:
        """Append to the stream."""
        self.total += len(data)
        room = self._head_limit - len(self.head)
        if room > 0:
            self.head += data[:room]
            data = data[room:]
        self._tail += data[-self._tail_limit :]
        if len(self._tail) > 2 * self._tail_limit:
            del self._tail[: -self._tail_limit]

    @property
    def tail(self) -> bytes:
        """The last bytes, without those that are in the head."""
        return bytes(self._tail[-self._tail_limit :])

    @property
    def omitted(self) -> int:
        """How many bytes between head and tail are gone."""
        return self.total - len(self.head) - len(self.tail)

    def limited(self, limit: int) -> HeadTail:
        """The same stream within another limit."""
        other = HeadTail(limit)
        other.add(bytes(self.head))
        other.add(self.tail)
        return other

    def text(self) -> str:
        """The stream as text; where bytes are gone, it says how many."""
        if not self.omitted:
            return (bytes(self.head) + self.tail).decode(errors="replace")
        head, tail = self.head.decode(errors="replace"), self.tail.decode(errors="replace")
        return f"{head}\n… {self.omitted} bytes left out …\n{tail}"


class Capture:
    """Takes the place of standard output and error of this process and its children."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        with suppress(OSError):  # this user's pipes take much memory already: a small one will do
            fcntl.fcntl(self._write, 1031, PIPE_SIZE)  # F_SETPIPE_SZ has a name since Python 3.10
        self._lock = threading.Lock()
        self._output = HeadTail(0)
        self._limit = 0
        self._sent = 0
        self._send: Send | None = None
        self._by_line = True
        self._streams = (_text_stream(1), _text_stream(2))

    def start(self, limit: int) -> None:
        """Begin to capture everything; of what is written outside of cells, `limit` bytes."""
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        self._redirect()
        self._limit = limit
        self._output = HeadTail(limit)
        sys.addaudithook(self._on_audit)
        threading.Thread(target=self._pump, daemon=True).start()

    def begin(self, limit: int, send: Send) -> None:
        """Start the output of a cell, which includes what was written since the last one.

        `send` is called with a piece of output and the number of bytes left out before it.
        """
        self._redirect()
        with self._lock:
            if limit != self._limit:
                self._limit = limit
                self._output = self._output.limited(limit)
            self._send = send
            self._forward()

    def finish(self) -> None:
        """End the output of the cell: send what it has written up to now."""
        self.flush()
        with self._lock:
            self._take_all()
            output, send = self._output, self._send
            if send and output.tail:
                send(output.tail, output.omitted)
            self._send = None
            self._sent = 0
            self._output = HeadTail(self._limit)

    def write(self, text: str) -> None:
        """Add the kernel's own words to the output, wherever `sys.stdout` leads."""
        self.flush()
        data = memoryview(text.encode(errors="backslashreplace"))
        while data:
            data = data[os.write(self._write, data) :]

    def flush(self) -> None:
        """Flush the buffers of this process."""
        for stream in {*self._streams, sys.stdout, sys.stderr}:
            # A cell may have closed it or put something else in its place.
            with suppress(AttributeError, OSError, RuntimeError, ValueError):
                stream.flush()

    def _redirect(self) -> None:
        """Point the streams back to the pipe, whatever the last cell did to them."""
        os.dup2(self._write, 1)
        os.dup2(self._write, 2)
        if any(stream.closed for stream in self._streams):
            self._streams = (_text_stream(1), _text_stream(2))
        self._set_line_buffering(True)
        sys.stdout, sys.stderr = self._streams

    def _set_line_buffering(self, value: bool) -> None:
        self._by_line = value
        for stream in self._streams:
            with suppress(ValueError):  # a cell has closed it
                stream.reconfigure(line_buffering=value)

    def _on_audit(self, event: str, _: object) -> None:
        if event in _STARTS_CHILD:
            self.flush()
        elif event == "os.kill":
            self._send_rest()

    def _send_rest(self) -> None:
        """Send what was written, because this process and its thread may be about to end."""
        self.flush()
        if self._lock.acquire(timeout=LOCK_SECONDS):
            try:
                self._take_all()
            finally:
                self._lock.release()

    def _pump(self) -> None:
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        while True:
            poll.poll()
            try:
                with self._lock:
                    taken = self._take()
            except (MemoryError, RuntimeError):  # RuntimeError: no room for a thread's stack
                # A cell has left no memory, and would wait for this thread indefinitely.
                lift()
                continue
            if taken < PIPE_SIZE // 2:
                time.sleep(GATHER_SECONDS)

    def _take_all(self) -> None:
        left = PIPE_SIZE  # the pipe held no more; others may keep filling it
        while left > 0 and (taken := self._take()):
            left -= taken

    def _take(self) -> int:
        """Empty the pipe once; return how much was in it."""
        try:
            data = os.read(self._read, PIPE_SIZE)
        except BlockingIOError:
            return 0
        self._output.add(data)
        self._forward()
        if self._by_line and self._output.total > BULK:
            self._by_line = False
            # Not here: it flushes, and only this thread empties a full pipe.
            threading.Thread(target=self._set_line_buffering, args=(False,), daemon=True).start()
        return len(data)

    def _forward(self) -> None:
        """Send what the head has gained."""
        if self._send and self._sent < len(self._output.head):
            piece = bytes(self._output.head[self._sent :])
            self._sent += len(piece)
            self._send(piece, 0)


def _text_stream(descriptor: int) -> io.TextIOWrapper:
    return open(descriptor, "w", BULK, encoding="utf-8", errors="backslashreplace", closefd=False)
