"""Machines that are worked with through a daemon: our program in them, which runs programs.

A daemon serves one host over a pair of byte streams, whatever carries them. Its code is in `guest`
and runs on the machine's own Python. A backend whose machines can run it is a `DaemonBackend`.
"""

from __future__ import annotations

from .backend import DaemonBackend
from .client import Daemon, Job, Streams, Transport, command
from .link import deleted
from .machine import DaemonMachine, Link, parse_refusal, rest
from .process import connect_process

__all__ = [
    "Daemon",
    "DaemonBackend",
    "DaemonMachine",
    "Job",
    "Link",
    "Streams",
    "Transport",
    "command",
    "connect_process",
    "deleted",
    "parse_refusal",
    "rest",
]
