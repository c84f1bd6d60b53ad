"""A client of the service that hides nothing: httpx2 and asyncssh as they are."""

from __future__ import annotations

import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import asyncssh
from anyio.abc import SocketAttribute
from anyio.streams.tls import TLSStream

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    import httpx2
    from anyio.abc import ByteStream, SocketStream

    from vers_emulator import VersEmulator

CIPHER = "aes128-gcm@openssh.com"
"""In asyncssh the quickest."""

SECONDS = 20.0
"""How long one thing may take on a loaded host."""

Json = dict[str, Any]


class RawVers:
    """Sends requests with the right key, and dials machines."""

    def __init__(self, emulator: VersEmulator, http: httpx2.AsyncClient) -> None:
        self.emulator = emulator
        self.http = http

    async def create(self, **config: object) -> str:
        reply = await self.http.post("/vm/new_root?wait_boot=true", json={"vm_config": config})
        assert reply.status_code == 201, reply.text
        return reply.json()["vm_id"]

    async def commit(self, vm: str, **body: str) -> str:
        reply = await self.http.post(f"/vm/{vm}/commit", json=body)
        assert reply.status_code == 201, reply.text
        return reply.json()["commit_id"]

    async def branch(self, vm: str) -> str:
        reply = await self.http.post(f"/vm/{vm}/branch")
        assert reply.status_code == 201, reply.text
        (made,) = reply.json()["vms"]
        return made["vm_id"]

    async def sh(self, vm: str, script: str) -> Json:
        reply = await self.http.post(f"/vm/{vm}/exec", json={"command": ["sh", "-c", script]})
        assert reply.status_code == 200, reply.text
        return reply.json()

    async def key(self, vm: str) -> asyncssh.SSHKey:
        reply = await self.http.get(f"/vm/{vm}/ssh_key")
        return asyncssh.import_private_key(reply.json()["ssh_private_key"])

    async def dial(self, vm: str, domain: str = "") -> TLSStream:
        """TLS to the door, with the machine's name in the handshake."""
        emulator = self.emulator
        stream = await anyio.connect_tcp(*emulator.ssh_address)
        try:
            return await TLSStream.wrap(
                stream,
                hostname=f"{vm}.{domain or emulator.options.domain}",
                ssl_context=ssl.create_default_context(cafile=emulator.ca_file),
                standard_compatible=False,
            )
        except BaseException:
            await anyio.aclose_forcefully(stream)
            raise

    @asynccontextmanager
    async def ssh(self, vm: str, **options: Any) -> AsyncGenerator[asyncssh.SSHClientConnection]:
        """SSH to a machine, through a port of this host, as asyncssh knows no TLS."""
        chosen: dict[str, Any] = {
            "username": "root",
            "client_keys": [await self.key(vm)],
            "known_hosts": None,
            "agent_path": None,
            "config": None,
            "encryption_algs": [CIPHER],
            **options,
        }
        failure: Exception | None = None
        async with (
            await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(listener.serve, self._forwarder(vm))
            port = listener.extra(SocketAttribute.local_port)
            try:
                with anyio.fail_after(SECONDS):
                    async with asyncssh.connect("127.0.0.1", port, **chosen) as connection:
                        yield connection
            except Exception as error:  # noqa: BLE001 - raised again outside: the group would wrap it
                failure = error
            tasks.cancel_scope.cancel()
        if failure:
            raise failure

    def _forwarder(self, vm: str) -> Callable[[SocketStream], Awaitable[None]]:
        async def forward(near: SocketStream) -> None:
            async with near, await self.dial(vm) as far, anyio.create_task_group() as pumps:
                pumps.start_soon(pump, near, far, pumps.cancel_scope)
                pumps.start_soon(pump, far, near, pumps.cancel_scope)

        return forward


async def pump(source: ByteStream, target: ByteStream, scope: anyio.CancelScope) -> None:
    try:
        async for data in source:
            await target.send(data)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        pass
    scope.cancel()
