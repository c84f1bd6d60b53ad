"""Machines that are worked with through an agent: a program in the machine that runs programs.

The agent serves one host over a pair of byte streams, whatever carries them. Its half of the code
is in `guest` and runs on the machine's own Python.
"""

from __future__ import annotations

from .conversation import Agent, Job, Transport, command
from .machine import AgentMachine, Link, Owner

__all__ = ["Agent", "AgentMachine", "Job", "Link", "Owner", "Transport", "command"]
