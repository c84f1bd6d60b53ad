"""The emulator: an HTTP service, a TLS door to SSH, and machines behind both."""

from __future__ import annotations

import logging
import secrets
import socket
import tempfile
import uuid
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import anyio
from starlette.applications import Starlette

from vers_rlm_mcp.machines.bubblewrap import BubblewrapBackend

from .api import PREFIX, Api
from .certificates import make_certificates
from .control import Control
from .counts import Counts
from .faults import Faults
from .http import serve_http
from .middleware import Dated, Faulty, Requests
from .options import Options
from .ssh import SshService
from .tls import Door
from .vms import Cloud

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .vms import Vm

logger = logging.getLogger(__name__)

NOTICE: Final = (
    "This is an emulator. Its commits and branches copy the disk only: no memory, no processes."
)

LOOPBACK: Final = "127.0.0.1"

CLOSE_SECONDS: Final = 30.0
"""How long removing all machines may take."""


class VersEmulator:
    """A Vers service of its own, on loopback, from the beginning to the end of an ``async with``.

    Its machines are namespaces on this host; a commit or branch copies only the disk.

    Args:
        state: A directory for its machines, which several emulators may share; they are removed in
            the end. None for a temporary one.
        options: What the service is like.
        seed: For faults that are only probable.
    """

    base_url: str
    """With ``/api/v1``."""
    ssh_address: tuple[str, int]
    """Where the TLS door listens."""
    ca_file: Path
    """What clients have to trust for it."""
    cloud: Cloud

    def __init__(
        self, state: Path | None = None, options: Options | None = None, *, seed: int = 0
    ) -> None:
        self.options = options or Options()
        self.api_key = f"{uuid.uuid4()}{secrets.token_hex(32)}"
        self.faults = Faults(seed)
        self.counts = Counts()
        self._state = state
        self._stack = AsyncExitStack()

    @property
    def vms(self) -> Sequence[Vm]:
        """The machines that are alive, oldest first."""
        return self.cloud.alive

    def facts(self) -> dict[str, Any]:
        """What a client needs to know, for JSON; `environment` points our own server at it."""
        host, port = self.ssh_address
        return {
            "base_url": self.base_url,
            "api_key": self.api_key,
            "ssh_address": [host, port],
            "ssh_domain": self.options.domain,
            "ca_file": str(self.ca_file),
            "environment": {
                "VERS_API_KEY": self.api_key,
                "VERS_BASE_URL": self.base_url,
                "VERS_RLM_BACKEND": "vers",
                "VERS_RLM_VERS_SSH_DOMAIN": self.options.domain,
                "VERS_RLM_VERS_SSH_ADDRESS": f"{host}:{port}",
                "VERS_RLM_VERS_CA_FILE": str(self.ca_file),
                "VERS_RLM_VERS_FIDELITY": "memory" if self.options.fork_kernels else "disk",
            },
        }

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await self._start(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *details: object) -> None:
        await self._stack.aclose()

    async def _start(self, stack: AsyncExitStack) -> None:
        files = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vers-emulator-")))
        context, self.ca_file = make_certificates(self.options.domain, files)
        backend = await stack.enter_async_context(BubblewrapBackend(self._state or files))
        self.cloud = Cloud(backend, self.options, self.faults, self.counts)
        http, ssh = _listen(self.options.http_port), _listen(self.options.ssh_port)
        self.base_url = f"http://{LOOPBACK}:{http.getsockname()[1]}{PREFIX}"
        self.ssh_address = LOOPBACK, ssh.getsockname()[1]
        tasks = await stack.enter_async_context(anyio.create_task_group())
        stack.callback(tasks.cancel_scope.cancel)
        requests = Requests(self._application())
        service = SshService(self.options, self.faults, self.counts, tasks)
        await tasks.start(serve_http, requests, http)
        tasks.start_soon(Door(self.cloud, service, context, self.options.domain).serve, ssh)
        stack.callback(requests.end)
        stack.push_async_callback(self._clear)
        logger.info("%s", NOTICE)

    def _application(self) -> Dated:
        routes = [
            *Api(self.cloud, self.options, self.counts, self.api_key).routes(),
            *Control(self.faults, self.counts).routes(),
        ]
        return Dated(Faulty(Starlette(routes=routes), self.faults), self.cloud)

    async def _clear(self) -> None:
        with anyio.move_on_after(CLOSE_SECONDS, shield=True):
            await self.cloud.clear()


def _listen(port: int) -> socket.socket:
    listener = socket.create_server((LOOPBACK, port))
    listener.setblocking(False)
    return listener
