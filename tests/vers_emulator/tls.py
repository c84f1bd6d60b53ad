"""The door to SSH: TLS, whose server name tells the machine."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

import anyio
import asyncssh
from anyio.abc import SocketListener, UNIXSocketStream
from anyio.streams.tls import TLSAttribute, TLSListener, TLSStream

from .faults import FailTls

if TYPE_CHECKING:
    from anyio.abc import AnyByteStream, ByteStream

    from .ssh import SshService
    from .vms import Cloud, Vm

CHUNK: Final = 64 * 1024

HANDSHAKE_SECONDS: Final = 30.0
"""How long a client may take for the TLS handshake."""


class Door:
    """Takes TLS connections for all machines, and hands each to SSH of the one it names."""

    def __init__(
        self, cloud: Cloud, service: SshService, context: ssl.SSLContext, domain: str
    ) -> None:
        self._cloud = cloud
        self._service = service
        self._context = context
        self._suffix = f".{domain}"
        self._named: WeakKeyDictionary[ssl.SSLObject, Vm] = WeakKeyDictionary()
        context.sni_callback = self._find

    async def serve(self, listener: socket.socket) -> None:
        """Serve until cancelled."""
        async with (
            await SocketListener.from_socket(listener) as plain,
            anyio.create_task_group() as connections,
        ):
            wrapped = _Listener(
                plain, self._context, standard_compatible=False, handshake_timeout=HANDSHAKE_SECONDS
            )
            await wrapped.serve(self._welcome, connections)

    def _find(
        self, connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext
    ) -> int | None:
        """Remember the machine that a client names, or end the handshake with an alert."""
        vm_id = (name or "").removesuffix(self._suffix)
        if self._service.faults.take(FailTls, "tls", vm_id):
            return ssl.ALERT_DESCRIPTION_HANDSHAKE_FAILURE
        vm = self._cloud.vms.get(vm_id)
        if vm is None or vm.deleted_at:
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        assert isinstance(connection, ssl.SSLObject)
        self._named[connection] = vm
        return None

    async def _welcome(self, stream: TLSStream) -> None:
        self._service.counts.tls_handshakes += 1
        vm = self._named.get(stream.extra(TLSAttribute.ssl_object))
        try:
            if vm is not None and await _answers(vm):
                await self._serve_ssh(stream, vm)
        finally:
            await anyio.aclose_forcefully(stream)

    async def _serve_ssh(self, stream: TLSStream, vm: Vm) -> None:
        """Let SSH talk to the client through TLS; its end is the end of the connection."""
        outer, inner = socket.socketpair()
        with anyio.CancelScope() as scope:
            vm.connections.add(scope)
            try:
                async with (
                    await UNIXSocketStream.from_socket(outer) as pipe,
                    anyio.create_task_group() as pumps,
                ):
                    pumps.start_soon(_pump, stream, pipe, scope)
                    pumps.start_soon(_pump, pipe, stream, scope)
                    options = self._service.connection(vm, scope.cancel)
                    with contextlib.suppress(asyncssh.Error, OSError):
                        connection = await asyncssh.run_server(inner, options=options)
                        await connection.wait_closed()
            finally:
                vm.connections.discard(scope)


class _Listener(TLSListener):
    @staticmethod
    async def handle_handshake_error(exc: BaseException, stream: AnyByteStream) -> None:
        """A handshake that fails is the client's business, and often what a test wants."""
        await anyio.aclose_forcefully(stream)
        if not isinstance(exc, Exception):
            raise exc


async def _answers(vm: Vm) -> bool:
    """Whether SSH of a machine answers now; when it hangs or is paused, wait until it does."""
    wait = vm.ssh_ready_at - time.monotonic()
    if wait > 0 and not vm.ssh_hangs:
        return False
    await anyio.sleep(max(0, wait))
    await vm.awake.wait()
    return True


async def _pump(source: ByteStream, target: ByteStream, scope: anyio.CancelScope) -> None:
    with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
        while True:
            await target.send(await source.receive(CHUNK))
    scope.cancel()
