"""The door to SSH: TLS, whose server name tells the machine."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import anyio
import asyncssh
from anyio.abc import ByteStream, SocketListener
from anyio.streams.tls import TLSStream

from .faults import FailTls, Mute

if TYPE_CHECKING:
    from anyio.abc import SocketStream

    from .ssh import SshService
    from .vms import Cloud, Vm

CHUNK: Final = 64 * 1024

HANDSHAKE_SECONDS: Final = 30.0
"""How long a client may take for the TLS handshake."""

ALERT: Final = bytes([21, 3, 3, 0, 2, 2])
"""The record of a fatal alert of TLS 1.2 and 1.3, but for its description (RFC 8446, 6)."""


@dataclass(slots=True)
class _Greeting:
    """What is found out during a handshake."""

    vm: Vm | None = None
    alert: int = ssl.ALERT_DESCRIPTION_HANDSHAKE_FAILURE


_greeting: ContextVar[_Greeting] = ContextVar("greeting")
"""That of the connection whose handshake runs in this task."""


class Door:
    """Takes TLS connections for all machines, and hands each to SSH of the one it names."""

    def __init__(
        self, cloud: Cloud, service: SshService, context: ssl.SSLContext, domain: str
    ) -> None:
        self._cloud = cloud
        self._service = service
        self._context = context
        self._suffix = f".{domain}"
        context.sni_callback = self._find

    async def serve(self, listener: socket.socket) -> None:
        """Serve until cancelled."""
        async with await SocketListener.from_socket(listener) as opened:
            await opened.serve(self._welcome)

    def _find(
        self, _connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext
    ) -> int | None:
        """Look for the machine that a client names; the number of an alert ends the handshake."""
        greeting = _greeting.get()
        vm_id = (name or "").removesuffix(self._suffix)
        self._service.counts.asked_about[vm_id] += 1
        if self._service.faults.take(FailTls, "tls", vm_id):
            return greeting.alert
        greeting.vm = self._cloud.vms.get(vm_id)
        if greeting.vm is None or greeting.vm.deleted_at:
            greeting.alert = ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
            return greeting.alert
        return None

    async def _welcome(self, plain: SocketStream) -> None:
        greeting = _Greeting()
        _greeting.set(greeting)
        try:
            if self._service.faults.take(Mute, "tls"):
                await anyio.sleep_forever()
            with anyio.fail_after(HANDSHAKE_SECONDS):
                stream = await TLSStream.wrap(
                    plain, ssl_context=self._context, server_side=True, standard_compatible=False
                )
            self._service.counts.tls_handshakes += 1
            if greeting.vm and await _answers(greeting.vm):
                await self._serve_ssh(stream, greeting.vm)
        except ssl.SSLError:
            await _refuse(plain, greeting.alert)
        except (anyio.BrokenResourceError, anyio.EndOfStream, TimeoutError):
            pass
        finally:
            await anyio.aclose_forcefully(plain)

    async def _serve_ssh(self, stream: TLSStream, vm: Vm) -> None:
        """Let SSH talk to the client through TLS; its end is the end of the connection."""
        outer, inner = socket.socketpair()
        with contextlib.ExitStack() as unused, anyio.CancelScope() as scope:
            unused.callback(inner.close)
            vm.connections.add(scope)
            try:
                async with _Pipe(outer) as pipe, anyio.create_task_group() as pumps:
                    pumps.start_soon(_pump, stream, pipe, vm, scope)
                    pumps.start_soon(_pump, pipe, stream, vm, scope)
                    options = self._service.connection(vm, scope.cancel, unused.pop_all)
                    with contextlib.suppress(asyncssh.Error, OSError):
                        connection = await asyncssh.run_server(inner, options=options)
                        await connection.wait_closed()
            finally:
                vm.connections.discard(scope)


async def _refuse(plain: SocketStream, alert: int) -> None:
    """Send the alert, as OpenSSL would if anyio let it. Before keys are agreed on it is plain."""
    with contextlib.suppress(anyio.BrokenResourceError):
        await plain.send(ALERT + bytes([alert]))


async def _answers(vm: Vm) -> bool:
    """Whether SSH of a machine answers now; when it hangs or is paused, wait until it does."""
    wait = vm.ssh_ready_at - time.monotonic()
    if wait > 0 and not vm.ssh_hangs:
        return False
    await anyio.sleep(max(0, wait))
    await vm.awake.wait()
    return True


class _Pipe(ByteStream):
    """A socket. The one of anyio fails when it is cancelled in the moment in which data comes."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._end = end

    async def receive(self, max_bytes: int = CHUNK) -> bytes:
        await anyio.lowlevel.checkpoint()
        while True:
            try:
                data = self._end.recv(max_bytes)
            except BlockingIOError:
                await anyio.wait_readable(self._end)
                continue
            except OSError as error:
                raise anyio.BrokenResourceError from error
            if not data:
                raise anyio.EndOfStream
            return data

    async def send(self, item: bytes) -> None:
        await anyio.lowlevel.checkpoint()
        view = memoryview(item)
        while view:
            try:
                view = view[self._end.send(view) :]
            except BlockingIOError:
                await anyio.wait_writable(self._end)
            except OSError as error:
                raise anyio.BrokenResourceError from error

    async def send_eof(self) -> None:
        self._end.shutdown(socket.SHUT_WR)

    async def aclose(self) -> None:
        anyio.notify_closing(self._end)
        self._end.close()


async def _pump(source: ByteStream, target: ByteStream, vm: Vm, scope: anyio.CancelScope) -> None:
    with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
        while True:
            data = await source.receive(CHUNK)
            await vm.audible.wait()
            await target.send(data)
    scope.cancel()
