"""What happened in the emulator, counted: what a test holds its expectations against."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields


@dataclass(slots=True)
class Counts:
    """Running totals since the start."""

    vms_made: int = 0
    vms_deleted: int = 0
    commits_made: int = 0
    commits_deleted: int = 0
    tls_handshakes: int = 0
    ssh_logins: int = 0
    sessions: Counter[str] = field(default_factory=Counter[str])
    """SSH sessions by their kind: ``exec``, ``shell``, ``sftp``."""
    asked_about: Counter[str] = field(default_factory=Counter[str])
    """Requests and TLS handshakes by the machine that they name, whether it is there or not."""
    requests: Counter[str] = field(default_factory=Counter[str])
    """Requests by method and route: ``POST /vm/{id}/branch``. Those that failed count as well."""

    @property
    def vms_alive(self) -> int:
        """Machines made and not deleted."""
        return self.vms_made - self.vms_deleted

    def as_dict(self) -> dict[str, object]:
        """All of it, for JSON."""
        own = {item.name: getattr(self, item.name) for item in fields(self)}
        return {**own, "vms_alive": self.vms_alive}
