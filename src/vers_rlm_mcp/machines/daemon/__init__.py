"""Machines that are worked with through a daemon: a program in the machine that runs programs.

The daemon serves one host over a pair of byte streams, whatever carries them. Its half of the code
is in `guest` and runs on the machine's own Python.
"""

from __future__ import annotations

from .conversation import Daemon, Job, Transport, command
from .machine import DaemonMachine, Link, Owner

__all__ = ["Daemon", "DaemonMachine", "Job", "Link", "Owner", "Transport", "command"]
