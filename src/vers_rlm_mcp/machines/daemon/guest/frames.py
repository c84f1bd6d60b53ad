"""The frames between a machine's daemon and its host, and the rules that both halves keep to.

The host numbers jobs, and uses no number twice. Each stream of a job has a window: its sender may
be ahead of its reader by that many bytes and no more. So no stream holds up another, and what
either half has to keep is bounded.

Runs in machines: standard library only, Python 3.8 and newer.
"""

from __future__ import annotations

TO_DAEMON = frozenset(
    {
        "start",  # job; payload: a JSON object, see `daemon`
        "data",  # job; payload: a piece of its input, whose end is an empty one
        "taken",  # job, stream, size: the host has taken so many bytes of an output
        "kill",  # job: kill it and its foreground; answered by the same
        "close",  # job: close its streams and forget it; its process lives on
        "ping",  # answered by the same
    }
)
"""Every kind of frame a host sends, with its header's fields."""

FROM_DAEMON = frozenset(
    {
        "ready",  # once, before all others
        "data",  # job, stream; payload: a piece of an output, whose end is an empty one
        "taken",  # job, size: so many bytes of its input were taken
        "unread",  # job: nothing reads its input any more
        "exit",  # job, code, signal: its process has ended; one of the two is null
        "kill",  # job
        "ping",
    }
)
"""Every kind of frame a daemon sends, with its header's fields."""

STDIN, STDOUT, STDERR, REPORT = range(4)
"""A job's streams, by the numbers of the descriptors that they are in its process.

The report is what the daemon's own code says in the place of a program: nothing once the program
runs or the file is open, ``!ERRNO TEXT`` if that failed, and the size of a file that was written.
"""

OUTPUTS = (STDOUT, STDERR, REPORT)

WINDOW = 1024 * 1024
"""Bytes: with 40 ms of round trip, one stream carries 25 MB a second."""

TELL_AFTER = WINDOW // 4
"""Bytes that are taken before the sender is notified: often enough that it never waits for a reader
who keeps up, and seldom enough to cost nothing."""

MAX_REQUEST = 4 * 1024 * 1024
"""Bytes of the payload of ``start``: twice what Linux allows for a program's arguments, escaped."""

CHUNK = 64 * 1024 - 64
"""Bytes of the largest piece of a stream: with its header what a pipe holds, and two packets of
SSH."""

COMPLETE = b"\0vers-rlm: complete\0"
"""Ends the input of a task that writes a file: without it, the file stays as it was."""
