"""The wire between the daemon in a machine and its host: frames, defined once for both halves.

A frame is a header and a payload. The header holds the payload's size, the frame's kind, and the
stream and the job that it is about. The host numbers jobs, and uses no number twice.

Each stream of a job has a window: whoever sends may be ahead of its reader by so many bytes, and
no more. So none holds up another, and what either half has to keep is bounded.

This module does no I/O. It also runs on the machine's own Python: standard library only, 3.8.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

READY = 0
"""From the daemon, once, first of all."""

START = 1
"""To the daemon. The payload is a JSON object: see `daemon`."""

DATA = 2
"""A piece of a stream; an empty one ends it. To the daemon it is input. One from there that ends
input says that nobody reads it any more."""

TAKEN = 3
"""To whoever sends a stream: its reader has taken as many bytes as the payload, a number, says."""

EXIT = 4
"""From the daemon: the process has ended. The payload is `STATUS`."""

KILL = 5
"""To the daemon: kill the job's session, unless its process has ended; answered by the same."""

CLOSE = 6
"""To the daemon: forget the job, and let go of its streams. The process may go on without them."""

PING = 7
"""To the daemon; answered by the same."""

STDIN, STDOUT, STDERR, REPORT = range(4)
"""A job's streams. The report is what the daemon's own code has to say in the place of a program:
nothing where the program was started or the file opened, ``!ERRNO TEXT`` where that failed, and the
size of a file that was written."""

OUTPUTS = (STDOUT, STDERR, REPORT)

WINDOW = 1024 * 1024
"""Bytes: with 40 ms of round trip, one stream carries 25 MB a second."""

TELL_AFTER = WINDOW // 4
"""Bytes that are taken before the sender is told so: often enough that it never has to wait for a
reader who keeps up, seldom enough to cost nothing."""

MAX_FRAME = 4 * 1024 * 1024
"""Bytes of the largest payload: twice what Linux allows for a program's arguments, escaped."""

HEADER = struct.Struct("!IBBI")
NUMBER = struct.Struct("!I")

CHUNK = 64 * 1024 - HEADER.size
"""Bytes of the largest piece of a stream: with its header what a pipe holds, and two packets of
SSH."""

STATUS = struct.Struct("!BB")
"""An exit code, and the number of the signal that ended the process, or 0."""


class FrameError(ValueError):
    """Bytes that are no frame of this protocol, or a frame that breaks its rules."""


def encode(kind: int, job: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """The bytes of a frame. Raises `FrameError` when it would be too large."""
    if len(payload) > MAX_FRAME:
        raise FrameError(f"a frame of {len(payload):,} bytes; {MAX_FRAME:,} are the most")
    return HEADER.pack(len(payload), kind, stream, job) + payload


class Decoder:
    """Turns bytes, split anywhere, back into frames. Holds one that is not whole at most.

    Args:
        limit: Bytes of the largest payload that is taken.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
        """The frames that `data` completes: kind, job, stream and payload.

        Raises `FrameError`, after which the rest has no meaning.
        """
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= HEADER.size:
            size, kind, stream, job = HEADER.unpack_from(self._buffer, start)
            if size > self._limit:
                raise FrameError(f"a frame of {size:,} bytes; {self._limit:,} are the most")
            end = start + HEADER.size + size
            if len(self._buffer) < end:
                break
            yield kind, job, stream, bytes(self._buffer[start + HEADER.size : end])
            start = end
        del self._buffer[:start]
