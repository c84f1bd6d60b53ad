"""The service's REST interface: one method per call that is used, over one pool of connections.

Reads and repeatable writes are retried. Calls that make something are single attempts: see
`making`.
"""

from __future__ import annotations

import ssl
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio
import httpx2
from pydantic import ValidationError

from vers_rlm_mcp import __version__
from vers_rlm_mcp.errors import MachineError
from vers_rlm_mcp.retries import with_retries

from .faults import HTTP_ERRORS, NotThere, Refused, garbled, refusal, translated
from .schema import (
    CommitInfo,
    CommitPage,
    Identity,
    MadeCommit,
    MadeVm,
    MadeVms,
    SshKey,
    Vm,
    VmMetadata,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from .config import VersConfig

T = TypeVar("T")

CALL_SECONDS: Final = 30.0
"""For one attempt. The slowest call that makes nothing, a delete, has taken 7 s."""

MAKE_SECONDS: Final = 120.0
"""For one attempt to make something: a branch takes 10 s, and waits for its machine to boot."""

CONNECT_SECONDS: Final = 10.0
POOL: Final = httpx2.Limits(max_connections=20, max_keepalive_connections=8, keepalive_expiry=60)
PAGE: Final = 100
"""Commits per reply: the most that the service sends."""

MAX_PAGES: Final = 100
"""Bounds the requests to a service whose list of commits never ends."""

PAUSE_WORDS: Final = ("Sleeping", "Paused")
"""Names of the state of a paused machine: since May 2026, and before."""


class VersApi:
    """The REST interface. Every error is one of `faults`, or a `MachineError` after retries."""

    def __init__(self, config: VersConfig) -> None:
        self.config = config
        self._client = httpx2.AsyncClient(
            headers={
                "Authorization": f"Bearer {config.key.value}",
                "User-Agent": f"vers-rlm-mcp/{__version__}",
            },
            verify=tls_context(config),
            limits=POOL,
            timeout=httpx2.Timeout(MAKE_SECONDS, connect=CONNECT_SECONDS),
        )

    # Machines

    async def create(self, vm_config: Mapping[str, Any]) -> str:
        """Make a fresh machine, and wait until it has booted. A single attempt."""
        return await self._make(
            "make a machine",
            "/vm/new_root",
            lambda data: MadeVm.model_validate(data).vm_id,
            params={"wait_boot": "true"},
            json={"vm_config": vm_config},
        )

    async def restore(self, commit: str, kind: str) -> str:
        """Make a machine from a commit. A single attempt.

        Args:
            commit: An id, reference or tag.
            kind: ``commit_id``, ``ref`` (``repository:tag``) or ``tag_name`` (a legacy tag).
        """
        return await self._make(
            f"restore {commit}",
            "/vm/from_commit",
            lambda data: MadeVm.model_validate(data).vm_id,
            json={kind: commit},
        )

    async def branch(self, vm_id: str, count: int) -> Sequence[str]:
        """Make copies of a machine. A single attempt."""
        return await self._make(
            f"branch machine {vm_id}",
            f"/vm/{vm_id}/branch",
            lambda data: [made.vm_id for made in MadeVms.parse(data).vms],
            params={"count": str(count)},
        )

    async def commit(self, vm_id: str, name: str, description: str) -> str:
        """Take a commit of a machine. A single attempt."""
        return await self._make(
            f"take a commit of machine {vm_id}",
            f"/vm/{vm_id}/commit",
            lambda data: MadeCommit.model_validate(data).commit_id,
            json={"name": name, "description": description},
        )

    async def vms(self) -> Sequence[Vm]:
        """Every machine of the organisation, except dead ones."""
        vms = await self._get(
            "list machines", "/vms", lambda data: [Vm.model_validate(vm) for vm in data]
        )
        return [vm for vm in vms if vm.state != "dead"]

    async def status(self, vm_id: str) -> Vm:
        """A machine. Raises `NotThere` if it does not exist or is dead."""
        vm = await self._get(f"find machine {vm_id}", f"/vm/{vm_id}/status", Vm.model_validate)
        if vm.state == "dead":
            raise NotThere(f"Machine {vm_id} is dead; nothing can be done with it any more.")
        return vm

    async def metadata(self, vm_id: str) -> VmMetadata:
        """What a machine was made from. Raises `NotThere`."""
        return await self._get(
            f"describe machine {vm_id}", f"/vm/{vm_id}/metadata", VmMetadata.model_validate
        )

    async def ssh_key(self, vm_id: str) -> str:
        """The private key for root on a machine. Raises `NotThere`."""
        what = f"get the SSH key of machine {vm_id}"
        key = await self._get(what, f"/vm/{vm_id}/ssh_key", SshKey.model_validate)
        return key.ssh_private_key

    async def wake(self, vm_id: str) -> None:
        """Resume a paused machine."""
        await self._set_state(vm_id, "Running")

    async def pause(self, vm_id: str) -> None:
        """Pause a machine and keep its memory, with a name of the state that the server knows."""
        for word in PAUSE_WORDS[:-1]:
            try:
                return await self._set_state(vm_id, word)
            except Refused as error:
                if error.status != HTTPStatus.UNPROCESSABLE_ENTITY:
                    raise
        return await self._set_state(vm_id, PAUSE_WORDS[-1])

    async def resize_disk(self, vm_id: str, fs_size_mib: int) -> None:
        """Make a machine's disk larger; the service does not make one smaller."""
        await self._change(
            f"give machine {vm_id} a disk of {fs_size_mib} MiB",
            "PATCH",
            f"/vm/{vm_id}/disk",
            json={"fs_size_mib": fs_size_mib},
        )

    async def label(self, vm_id: str, labels: Mapping[str, str]) -> None:
        """Label a machine, with the newer call if the server has it."""
        what = f"label machine {vm_id}"
        body = {"labels": dict(labels)}
        try:
            await self._change(what, "PUT", f"/vm/{vm_id}/labels", json=body)
        except (NotThere, Refused) as error:
            if isinstance(error, Refused) and error.status != HTTPStatus.METHOD_NOT_ALLOWED:
                raise
            await self._change(what, "PATCH", f"/vm/{vm_id}/label", json=body)

    async def delete(self, vm_id: str) -> None:
        """Delete a machine. One that is not there is no error."""
        try:
            await self._change(f"delete machine {vm_id}", "DELETE", f"/vm/{vm_id}")
        except NotThere:
            return
        except Refused as error:
            # Unknown machines are answered like forbidden ones.
            if error.status != HTTPStatus.FORBIDDEN or await self.exists(vm_id):
                raise

    async def exists(self, vm_id: str) -> bool:
        """Whether there is such a machine."""
        try:
            await self.status(vm_id)
        except NotThere:
            return False
        return True

    # Commits

    async def commits(self) -> AsyncIterator[CommitInfo]:
        """Every commit of the organisation, requested page by page."""
        seen = 0
        for _ in range(MAX_PAGES):
            page = await self._get(
                "list commits",
                "/commits",
                CommitPage.model_validate,
                params={"limit": str(PAGE), "offset": str(seen)},
            )
            for commit in page.commits:
                yield commit
            seen += len(page.commits)
            if not page.commits or seen >= page.total:
                return

    async def describe_commit(self, commit: CommitInfo, description: str) -> None:
        """Change a commit's description."""
        await self._change(
            f"describe commit {commit.commit_id}",
            "PATCH",
            f"/commits/{commit.commit_id}",
            json={"is_public": False, "name": commit.name, "description": description},
        )

    async def delete_commit(self, commit_id: str) -> None:
        """Delete a commit; one that is not there is no error.

        Raises `Refused` with status 409 while machines made from it exist.
        """
        try:
            await self._change(f"delete commit {commit_id}", "DELETE", f"/commits/{commit_id}")
        except NotThere:
            return

    # The service

    async def whoami(self) -> Identity:
        """The owner and limits of the key. Raises `NotThere` on an older server."""
        return await self._get("tell whose key this is", "/whoami", Identity.model_validate)

    async def health(self) -> None:
        """Ask whether the service is up. A single attempt, which needs no key."""
        await self._send("tell its health", "GET", f"{self.config.url}/health", CALL_SECONDS)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    # Requests

    async def _set_state(self, vm_id: str, state: str) -> None:
        what = f"set machine {vm_id} to {state}"
        await self._change(what, "PATCH", f"/vm/{vm_id}/state", json={"state": state})

    async def _get(self, what: str, path: str, parse: Callable[[Any], T], **options: Any) -> T:
        async def attempt() -> T:
            url = f"{self.config.api_url}{path}"
            response = await self._send(what, "GET", url, CALL_SECONDS, **options)
            return self._parse(what, response, parse)

        return await with_retries(attempt, failed=MachineError)

    async def _change(self, what: str, method: str, path: str, **options: Any) -> None:
        async def attempt() -> None:
            url = f"{self.config.api_url}{path}"
            await self._send(what, method, url, CALL_SECONDS, **options)

        await with_retries(attempt, failed=MachineError)

    async def _make(self, what: str, path: str, parse: Callable[[Any], T], **options: Any) -> T:
        url = f"{self.config.api_url}{path}"
        response = await self._send(what, "POST", url, MAKE_SECONDS, **options)
        return self._parse(what, response, parse)

    async def _send(
        self, what: str, method: str, url: str, seconds: float, **options: Any
    ) -> httpx2.Response:
        # `from None`: the foreign error holds the request, with the key in its headers.
        try:
            with anyio.fail_after(seconds):
                response = await self._client.request(method, url, **options)
        except (*HTTP_ERRORS, OSError) as error:
            raise translated(self.config, what, error) from None
        if not response.is_success:
            raise refusal(self.config, what, response)
        return response

    def _parse(self, what: str, response: httpx2.Response, parse: Callable[[Any], T]) -> T:
        try:
            return parse(response.json())
        except (ValidationError, ValueError, TypeError):
            raise garbled(self.config, what, response) from None


def tls_context(config: VersConfig) -> ssl.SSLContext:
    """The TLS context for connections to the service and its machines."""
    context = ssl.create_default_context(cafile=config.ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if config.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
