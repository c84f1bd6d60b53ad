"""What the emulated service is like: which of its published versions, how big, how slow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

DOMAIN = "vm.vers.test"
"""Needs no name server: clients dial a configured address and send this in the handshake."""


@dataclass(frozen=True, slots=True)
class Options:
    """Switches for what differs between published versions; the defaults are the newest one's."""

    paused_state: Literal["Sleeping", "Paused"] = "Sleeping"
    """The word that PATCH state takes, besides ``Running``; it reads back in lower case."""
    branch_reply: Literal["vms", "vm_id"] = "vms"
    commit_needs_body: bool = True
    stream_types: bool = True
    """Whether lines of exec/stream carry a `type`; else an empty `data_b64` marks the end."""
    newer_endpoints: bool = True
    """Whether ``GET /vm``, ``GET /whoami`` and ``PUT /vm/{id}/labels`` exist, and metadata tells
    processors and memory."""

    boot_seconds: float = 0.0
    """How long a machine of new_root is ``booting``; the others never are."""
    exec_seconds: float = 30.0
    """The hard cap of POST exec."""
    max_vms: int | None = None
    """Machines that may live at once; more are refused as a quota."""
    max_vcpus: int = 64
    max_memory_mib: int = 131072
    max_sessions: int = 10
    """Channels of one SSH connection, as OpenSSH's MaxSessions has it by default."""
    close_kills: bool = False
    """Whether closing a channel kills its command. OpenSSH leaves it: it only loses its pipes."""
    fork_kernels: bool = False
    """Whether the variables of a machine's kernel go into its copies, in a way of the emulator's
    own (`kernels`); else copies have no kernel, as they have no process at all."""
    domain: str = DOMAIN
    http_port: int = 0
    ssh_port: int = 0
    """Ports to listen on, on loopback; 0 takes a free one."""

    @classmethod
    def older(cls) -> Self:
        """The service as it was until May 2026."""
        return cls(
            paused_state="Paused",
            branch_reply="vm_id",
            commit_needs_body=False,
            stream_types=False,
            newer_endpoints=False,
        )
