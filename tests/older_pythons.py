"""Imported for what it does: mends what early releases of Python 3.11 do to tests."""

from __future__ import annotations

import sys
from asyncio.subprocess import SubprocessStreamProtocol

if sys.version_info < (3, 11, 4):
    # Input that a process never read is an error there, although waiting for it is optional
    # (python/cpython#104340), and the loop of the tests raises it in whichever test comes next.
    connection_lost = SubprocessStreamProtocol.pipe_connection_lost

    def pipe_connection_lost(self: SubprocessStreamProtocol, fd: int, exc: Exception | None):
        connection_lost(self, fd, exc)
        if fd == 0:
            self._stdin_closed.exception()

    SubprocessStreamProtocol.pipe_connection_lost = pipe_connection_lost
