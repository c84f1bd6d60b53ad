"""A Vers service to test against: the published wire contract over real sockets on loopback.

Machines are those of the `bubblewrap` backend, so commands, files and limits are real. What a VM
has that they have not is missing: **commits and branches copy the disk only**, not memory and
processes (with `Options.fork_kernels` the variables of a kernel live on, by other means); a resized
disk is noted, not enforced; no HTTP ports are exposed.
"""

from __future__ import annotations

from .client import config_from, config_of
from .counts import Counts
from .emulator import NOTICE, VersEmulator
from .faults import (
    Answer,
    Cut,
    Delay,
    Endless,
    FailTls,
    Fault,
    Faults,
    Garbage,
    Hang,
    LoseReply,
    Mute,
    NotReady,
    Refuse,
    RefuseLogin,
    Reset,
    Truncate,
    quota,
)
from .options import Options

__all__ = [
    "NOTICE",
    "Answer",
    "Counts",
    "Cut",
    "Delay",
    "Endless",
    "FailTls",
    "Fault",
    "Faults",
    "Garbage",
    "Hang",
    "LoseReply",
    "Mute",
    "NotReady",
    "Options",
    "Refuse",
    "RefuseLogin",
    "Reset",
    "Truncate",
    "VersEmulator",
    "config_from",
    "config_of",
    "quota",
]
