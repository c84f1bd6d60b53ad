"""The service's REST interface: one method per call that is used, over one pool of connections.

Reads and repeatable writes are retried. Calls that make something are single attempts: see
`making`.
"""

from __future__ import annotations

import ssl
import time
from contextlib import suppress
from email.utils import parsedate_to_datetime
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio
import httpx2
from pydantic import ValidationError

from vers_rlm_mcp import __version__
from vers_rlm_mcp.errors import BackendUnavailable, MachineError
from vers_rlm_mcp.replies import BOUNDED, parse_json
from vers_rlm_mcp.retries import with_retries

from .faults import (
    HTTP_ERRORS,
    NotThere,
    PassingVersFault,
    Refused,
    garbled,
    refusal,
    translated,
)
from .schema import (
    CommitInfo,
    Identity,
    MadeCommit,
    MadeVm,
    MadeVms,
    Page,
    SshKey,
    Vm,
    VmMetadata,
    read_each,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from .config import VersConfig

T = TypeVar("T")

CALL_SECONDS: Final = 30.0
"""For a call that makes nothing, with its repetitions. The slowest, a delete, has taken 7 s."""

ATTEMPT_SECONDS: Final = 15.0
"""For one attempt at such a call, so that there is time for another."""

MAKE_SECONDS: Final = 120.0
"""For one attempt to make something: a branch takes 10 s, and waits for its machine to boot."""

CONNECT_SECONDS: Final = 10.0
POOL: Final = httpx2.Limits(max_connections=20, max_keepalive_connections=8, keepalive_expiry=60)
PAGE: Final = 100
"""Commits per reply: the most that the service sends."""

MAX_PAGES: Final = 1000
"""Bounds the requests to a service whose lists never end."""

SILENT_SECONDS: Final = 2.0
"""After a request without an answer for so long, the service is asked whether it answers at all."""

GONE_SECONDS: Final = 5.0
"""How long a machine may still be there after the service has said that it is deleted."""

GONE_PAUSE: Final = 0.5

DATE_SECONDS: Final = 2.0
"""By how much a Date header, which has whole seconds, may differ from our clock without meaning
that the service's clock is another."""

PAUSE_WORDS: Final = ("Sleeping", "Paused")
"""Names of the state of a paused machine: since May 2026, and before."""


class VersApi:
    """The REST interface. Every error is one of `faults`, or a `MachineError` after retries."""

    def __init__(self, config: VersConfig) -> None:
        self.config = config
        self._clock = 0.0
        """Seconds by which the service's clock is ahead of ours."""
        self._is_silent = False
        """Whether the last request was not answered."""
        self._client = httpx2.AsyncClient(
            headers={
                "Authorization": f"Bearer {config.key.value}",
                "User-Agent": f"vers-rlm-mcp/{__version__}",
            },
            verify=tls_context(config),
            limits=POOL,
            event_hooks=BOUNDED,
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
        """Every machine of the organisation, except dead ones, oldest first."""
        items = [item async for item in self._items("list machines", "/vms", "vms")]
        vms = {vm.vm_id: vm for vm in read_each(Vm, items) if vm.state != "dead"}
        return sorted(vms.values(), key=self.made_at)

    async def status(self, vm_id: str) -> Vm:
        """A machine. Raises `NotThere` if it does not exist or is dead."""

        def parse(data: Any) -> Vm:
            vm = Vm.model_validate(data)
            _require_same(vm.vm_id, vm_id)
            return vm

        vm = await self._get(f"find machine {vm_id}", f"/vm/{vm_id}/status", parse)
        if vm.state == "dead":
            raise NotThere(f"Machine {vm_id} is dead; nothing can be done with it any more.")
        return vm

    async def metadata(self, vm_id: str) -> VmMetadata:
        """What a machine was made from. Raises `NotThere`."""

        def parse(data: Any) -> VmMetadata:
            metadata = VmMetadata.model_validate(data)
            _require_same(metadata.vm_id or vm_id, vm_id)
            return metadata

        return await self._get(f"describe machine {vm_id}", f"/vm/{vm_id}/metadata", parse)

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
        """Delete a machine, and see that it is gone. One that is not there is no error.

        The answer alone proves nothing: unknown machines are answered like forbidden ones, and a
        machine that is said to be deleted, and is not, costs money.
        """
        failure: MachineError | None = None
        try:
            await self._change(f"delete machine {vm_id}", "DELETE", f"/vm/{vm_id}")
        except BackendUnavailable:
            raise
        except NotThere:
            pass
        except MachineError as error:
            failure = error
        until = anyio.current_time() + (0 if failure else GONE_SECONDS)
        while await self.exists(vm_id):
            if anyio.current_time() >= until:
                raise failure or MachineError(
                    f"Vers says that machine {vm_id} is deleted, but it is still there and costs "
                    "money. Delete it once more later, or at https://vers.sh."
                )
            await anyio.sleep(GONE_PAUSE)

    async def exists(self, vm_id: str) -> bool:
        """Whether there is such a machine: by its status or, if that is refused, by the list."""
        try:
            await self.status(vm_id)
        except NotThere:
            return False
        except BackendUnavailable:
            raise
        except MachineError:
            return any(vm.vm_id == vm_id for vm in await self.vms())
        return True

    def made_at(self, item: Vm | CommitInfo) -> float:
        """When something was made by our clock, in seconds since the epoch; 0 if it is not told.

        The service's clock may be hours away from ours; its replies are dated by it.
        """
        return item.created_at.timestamp() - self._clock if item.created_at else 0.0

    # Commits

    async def commits(self) -> AsyncIterator[CommitInfo]:
        """Every commit of the organisation, requested page by page."""
        seen: set[str] = set()
        async for item in self._items("list commits", "/commits", "commits", limit=PAGE):
            for commit in read_each(CommitInfo, [item]):
                if commit.commit_id not in seen:
                    seen.add(commit.commit_id)
                    yield commit

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
        await self._send("tell its health", "GET", f"{self.config.url}/health", ATTEMPT_SECONDS)

    async def is_answering(self) -> bool:
        """Whether the service answers anything at all, within some `SILENT_SECONDS`."""
        url = f"{self.config.url}/health"
        with anyio.move_on_after(2 * SILENT_SECONDS):
            try:
                async with self._client.stream("GET", url, timeout=SILENT_SECONDS):
                    return True
            except httpx2.PoolTimeout:  # all connections are in use, so that it cannot be asked
                return True
            except (*HTTP_ERRORS, OSError):
                return False
        return False

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
            response = await self._send(what, "GET", url, ATTEMPT_SECONDS, **options)
            return self._parse(what, response, parse)

        return await self._repeat(what, attempt)

    async def _items(
        self, what: str, path: str, name: str, limit: int | None = None
    ) -> AsyncIterator[Any]:
        """What is listed, page by page if the service sends pages; each is still any JSON."""
        params = {} if limit is None else {"limit": str(limit), "offset": "0"}
        seen = 0
        last: Sequence[Any] = ()
        for _ in range(MAX_PAGES):
            page = await self._get(what, path, partial(Page.parse, name=name), params=params)
            for item in page.items:
                yield item
            seen += len(page.items)
            if not page.has_next(seen, limit or PAGE) or page.items == last:
                return
            last = page.items
            params = {"limit": str(limit or PAGE), "offset": str(seen)}
        raise MachineError(f"Vers does not come to an end: cannot {what} after {seen:,}.")

    async def _change(self, what: str, method: str, path: str, **options: Any) -> None:
        async def attempt() -> None:
            url = f"{self.config.api_url}{path}"
            await self._send(what, method, url, ATTEMPT_SECONDS, **options)

        await self._repeat(what, attempt)

    async def _repeat(self, what: str, attempt: Callable[[], Awaitable[T]]) -> T:
        last: list[PassingVersFault] = []

        async def noted() -> T:
            try:
                return await attempt()
            except PassingVersFault as fault:
                last[:] = [fault]
                raise

        with anyio.move_on_after(CALL_SECONDS):
            return await with_retries(noted, failed=MachineError)
        said = str(last[0]) if last else f"Vers did not answer in time: cannot {what}."
        raise MachineError(f"{said} Tried for {CALL_SECONDS:g} s: try again later.")

    async def _make(self, what: str, path: str, parse: Callable[[Any], T], **options: Any) -> T:
        url = f"{self.config.api_url}{path}"
        response = await self._send(what, "POST", url, MAKE_SECONDS, **options)
        return self._parse(what, response, parse)

    async def _send(
        self, what: str, method: str, url: str, seconds: float, **options: Any
    ) -> httpx2.Response:
        if self._is_silent and not await self.is_answering():
            # Else everything that is tried, to clean up too, would wait for its own time limit.
            raise MachineError(
                f"Vers does not answer at {self.config.url}: cannot {what}. Check the network, and "
                "try again later; see https://vers.sh for its status."
            )
        started = anyio.current_time()
        is_answered = False
        # `from None`: the foreign error holds the request, with the key in its headers.
        try:
            with anyio.fail_after(seconds):
                response = await self._client.request(method, url, **options)
            is_answered = True
        except (*HTTP_ERRORS, OSError) as error:
            raise translated(self.config, what, error) from None
        finally:
            waited = anyio.current_time() - started
            self._is_silent = not is_answered and waited > SILENT_SECONDS
        self._note_clock(response)
        if not response.is_success:
            raise refusal(self.config, what, response)
        return response

    def _note_clock(self, response: httpx2.Response) -> None:
        with suppress(ValueError, OverflowError, OSError):  # no date, or none that there is
            date = parsedate_to_datetime(response.headers.get("Date", ""))
            ahead = date.timestamp() - time.time()
            if abs(ahead - self._clock) > DATE_SECONDS:
                self._clock = ahead if abs(ahead) > DATE_SECONDS else 0.0

    def _parse(self, what: str, response: httpx2.Response, parse: Callable[[Any], T]) -> T:
        try:
            return parse(parse_json(response.content))
        except (ValidationError, ValueError, TypeError):
            raise garbled(self.config, what, response) from None


def _require_same(told: str, asked: str) -> None:
    if told != asked.lower():
        raise ValueError(f"it is about {told}")


def tls_context(config: VersConfig) -> ssl.SSLContext:
    """The TLS context for connections to the service and its machines."""
    context = ssl.create_default_context(cafile=config.ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if config.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
