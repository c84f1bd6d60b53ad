"""SSH inside TLS: connects to machines and checks their host keys."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import anyio
import asyncssh

from vers_rlm_mcp.errors import BackendUnavailable, MachineError

from ..daemon import Daemon, command
from .api import tls_context
from .faults import SSH_ERRORS, quote, translated

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Sequence

    from .api import VersApi

USER: Final = "root"

CONNECT_SECONDS: Final = 15.0
"""For one attempt: TLS, SSH and login took 2.9 s from far away."""

KEEPALIVE_SECONDS: Final = 10.0
KEEPALIVES: Final = 6
"""A connection that is silent for a minute, though asked every 10 s, is lost."""

CIPHERS: Final = "^aes128-gcm@openssh.com"
"""Prefer the cipher that processors have instructions for; TLS encrypts it all anyway."""

_NO_KNOWN_HOSTS: Final[tuple[Sequence[str], ...]] = ([], [], [])
"""No host is trusted or revoked beforehand, so asyncssh asks `Connection` about each."""


class NotReady(MachineError):
    """SSH does not let us in, yet."""


@dataclass
class Pins:
    """The host keys of machines, as they were when first seen; copies have the original's."""

    keys: dict[str, str] = field(default_factory=dict[str, str])

    def inherit(self, machine_id: str, original: str | None) -> None:
        """Expect of a copy the key of its original, a machine or a commit, if that is known."""
        if original in self.keys:
            self.keys[machine_id] = self.keys[original]

    def accept(self, machine_id: str, key: asyncssh.SSHKey) -> bool:
        """Whether this is the machine's key; the first one seen is trusted."""
        fingerprint = key.get_fingerprint()
        return self.keys.setdefault(machine_id, fingerprint) == fingerprint


class Connector:
    """Makes SSH connections to machines."""

    def __init__(self, api: VersApi) -> None:
        self.api = api
        self.pins = Pins()
        self._tls = tls_context(api.config)
        self._ssh_keys: dict[str, asyncssh.SSHKey] = {}

    async def connect(self, machine_id: str) -> Daemon:
        """Connect, log in, and start a daemon.

        Raises `NotReady`, or `BackendUnavailable` if trying again makes no sense.
        """
        key = await self._key(machine_id)
        client = Connection(machine_id, None if self.api.config.insecure else self.pins)
        try:
            with anyio.fail_after(CONNECT_SECONDS):
                await self._open(client, machine_id, key)
        except BaseException as error:
            client.daemon.lose()
            if isinstance(error, (*SSH_ERRORS, anyio.BrokenResourceError)):
                raise self._refusal(client, machine_id, error) from None
            raise
        return client.daemon

    async def _open(self, client: Connection, machine_id: str, key: asyncssh.SSHKey) -> None:
        host, port, name = self.api.config.ssh_target(machine_id)
        client.ssh, _ = await asyncssh.create_connection(
            lambda: client,
            host,
            port,
            tunnel=_Tls(self._tls, name),
            username=USER,
            client_keys=[key],
            known_hosts=_NO_KNOWN_HOSTS,
            server_host_key_algs="default",
            encryption_algs=CIPHERS,
            agent_path=None,
            config=None,
            preferred_auth="publickey",
            keepalive_interval=KEEPALIVE_SECONDS,
            keepalive_count_max=KEEPALIVES,
            connect_timeout=None,
            login_timeout=CONNECT_SECONDS,
        )
        await client.ssh.create_session(  # pyright: ignore[reportUnknownMemberType] - its type variable is lost
            lambda: _Channel(client), command(), encoding=None
        )
        await client.daemon.begin()

    def _refusal(self, client: Connection, machine_id: str, error: Exception) -> MachineError:
        if client.wrong_host_key:
            return BackendUnavailable(
                f"Machine {machine_id} shows another SSH host key than before: it, or what is "
                "in between, is not to be trusted. Make a new machine."
            )
        fault = translated(self.api.config, f"connect to machine {machine_id}", error)
        if isinstance(fault, BackendUnavailable):
            return fault
        return NotReady(quote(self.api.config, f"{type(error).__name__}: {error}"))

    async def _key(self, machine_id: str) -> asyncssh.SSHKey:
        if machine_id not in self._ssh_keys:
            text = await self.api.ssh_key(machine_id)
            try:
                self._ssh_keys[machine_id] = asyncssh.import_private_key(text)
            except ValueError:
                raise BackendUnavailable(
                    f"The SSH key that Vers gave for machine {machine_id} cannot be read; look for "
                    "a newer vers-rlm-mcp."
                ) from None
        return self._ssh_keys[machine_id]

    def forget(self, machine_id: str) -> None:
        """Forget the key of a machine that is gone."""
        self._ssh_keys.pop(machine_id, None)


class Connection(asyncssh.SSHClient):
    """An SSH connection, and the daemon at its other end."""

    ssh: asyncssh.SSHClientConnection | None = None
    channel: asyncssh.SSHClientChannel[bytes] | None = None

    def __init__(self, machine_id: str, pins: Pins | None) -> None:
        self.daemon = Daemon()
        self.daemon.connected(self)
        self.wrong_host_key = False
        self._machine_id = machine_id
        self._pins = pins

    def validate_host_public_key(
        self, host: str, addr: str, port: int, key: asyncssh.SSHKey
    ) -> bool:
        """Whether the server is the one that was seen before."""
        del host, addr, port  # they change from connection to connection
        self.wrong_host_key = bool(self._pins) and not self._pins.accept(self._machine_id, key)
        return not self.wrong_host_key

    def write(self, data: bytes) -> None:
        """Send to the daemon, as soon as there is room."""
        assert self.channel
        self.channel.write(data)  # pyright: ignore[reportUnknownMemberType] - its class is not typed

    def abort(self) -> None:
        """Close the connection without waiting."""
        if self.ssh:
            self.ssh.abort()

    async def wait_closed(self) -> None:
        """Wait until the connection is closed."""
        if self.ssh:
            await self.ssh.wait_closed()


class _Channel(asyncssh.SSHClientSession[bytes]):
    """The daemon's channel. When it closes, the connection is lost."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._daemon = connection.daemon

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        self._connection.channel = chan

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        if datatype is None:
            self._daemon.received(data)
        else:
            self._daemon.complained(data)

    def exit_status_received(self, status: int) -> None:
        self._daemon.ended(status)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc  # the standard error of the daemon says more
        self._daemon.lose()


@dataclass
class _Tls:
    """A tunnel for asyncssh: TLS to the server that is named in the handshake."""

    context: ssl.SSLContext
    name: str

    async def create_connection(
        self, factory: Callable[[], Any], host: str, port: int
    ) -> tuple[Any, Any]:
        return await asyncio.get_running_loop().create_connection(
            factory, host, port, ssl=self.context, server_hostname=self.name
        )

    def close(self) -> None:
        """There is nothing but the connection itself."""

    async def wait_closed(self) -> None:
        """There is nothing to wait for."""
