"""The SSH server of a machine, as its sshd would be: who enters, by which key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import asyncssh

from .faults import RefuseLogin
from .sessions import Channel, Session

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyio.abc import TaskGroup

    from .counts import Counts
    from .faults import Faults
    from .options import Options
    from .vms import Vm

VERSION: Final = "OpenSSH_9.6p1"
"""That of Ubuntu 24.04; clients decide by it in which order SFTP's symlink has its arguments."""


class SshService:
    """Serves SSH for machines; each connection comes with the machine that it is for."""

    def __init__(self, options: Options, faults: Faults, counts: Counts, tasks: TaskGroup) -> None:
        self.options = options
        self.faults = faults
        self.counts = counts
        self.tasks = tasks
        """Holds what outlives its connection: commands."""

    def connection(
        self, vm: Vm, cut: Callable[[], None], on_made: Callable[[], object]
    ) -> asyncssh.SSHServerConnectionOptions:
        """What asyncssh needs to serve one connection to a machine.

        Args:
            vm: The machine.
            cut: Breaks the connection.
            on_made: Told when the socket is asyncssh's.
        """
        return asyncssh.SSHServerConnectionOptions(
            server_factory=lambda: _Login(self, vm, cut, on_made),
            server_host_keys=[vm.image.keys.host],
            server_version=VERSION,
            encoding=None,
        )


class _Login(asyncssh.SSHServer):
    """One connection: who enters, and how many sessions it has."""

    def __init__(
        self,
        service: SshService,
        vm: Vm,
        cut: Callable[[], None],
        on_made: Callable[[], object],
    ) -> None:
        self._on_made = on_made
        self._service = service
        self._vm = vm
        self._cut = cut
        self._open: set[Session] = set()

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self._on_made()

    def begin_auth(self, username: str) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        right = key.public_data == self._vm.image.keys.client.public_data and username == "root"
        return right and not self._service.faults.take(RefuseLogin, "login", self._vm.id)

    def auth_completed(self) -> None:
        self._service.counts.ssh_logins += 1

    def session_requested(self) -> tuple[Channel, Session] | bool:
        if len(self._open) >= self._service.options.max_sessions:
            return False
        session = Session(self._service, self._vm, self._cut, self._open.discard)
        self._open.add(session)
        return Channel.for_bytes(self._connection), session
