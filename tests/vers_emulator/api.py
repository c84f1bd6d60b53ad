"""The endpoints of the service, as published; where nothing is published, the plainest answer.

What that is: whatever is not there is a JSON 404; a paused machine refuses to do things with a 409;
metadata still tells of a machine that was deleted; a command of POST exec that a signal ended has
128 and its number as exit code, one that takes too long is killed and answered with a 504.
"""

from __future__ import annotations

import hmac
import json
import sys
import time
import uuid
from functools import partial
from typing import TYPE_CHECKING, Final

import anyio
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from vers_rlm_mcp.errors import VersRlmError

from .answers import Refusal, failed, forbidden, nothing_to_branch, plain
from .execution import Execution
from .requests import (
    ChangeCommit,
    FromCommit,
    Labels,
    NewCommit,
    NewRoot,
    NewState,
    NewTag,
    Resize,
    check_id,
    read_body,
    read_flag,
    read_id,
    read_number,
)
from .vms import Config, now

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from starlette.requests import Request

    from .counts import Counts
    from .options import Options
    from .vms import Cloud, CommitEntry, Vm

    Endpoint = Callable[[Request], Awaitable[Response]]

    Copies = Callable[[str, str, int], Awaitable[Sequence[Vm]]]
    """Makes machines: of what, for the request at which place, how many."""

PREFIX: Final = "/api/v1"

PAGE: Final = 50
MAX_PAGE: Final = 100

MAX_BRANCHES: Final = 100

SSH_PORT: Final = 22222
"""What `ssh_key` tells; it is not the port to dial."""


class Json(JSONResponse):
    """JSON with what Python's own has besides: NaN."""

    def render(self, content: object) -> bytes:
        return json.dumps(content).encode()


class Api:
    """The service behind its HTTP endpoints."""

    def __init__(self, cloud: Cloud, options: Options, counts: Counts, key: str) -> None:
        self._cloud = cloud
        self._options = options
        self._counts = counts
        self._authorization = f"Bearer {key}".encode()

    def routes(self) -> list[Route]:
        """All endpoints, counted and behind authentication."""
        execution = Execution(self._cloud, self._options)
        endpoints: list[tuple[str, str, Endpoint]] = [
            ("GET", "/vms", self._list),
            ("POST", "/vm/new_root", self._new_root),
            ("POST", "/vm/from_commit", self._from_commit),
            ("GET", "/vm/{vm_id}/status", self._status),
            ("GET", "/vm/{vm_id}/metadata", self._metadata),
            ("PATCH", "/vm/{vm_id}/state", self._set_state),
            ("PATCH", "/vm/{vm_id}/disk", self._resize),
            ("POST", "/vm/{vm_id}/commit", self._commit),
            ("POST", "/vm/{vm_or_commit_id}/branch", self._branch),
            ("POST", "/vm/branch/by_vm/{vm_id}", self._branch_vm),
            ("POST", "/vm/branch/by_commit/{commit_id}", self._branch_commit),
            ("POST", "/vm/branch/by_tag/{tag}", self._branch_tag),
            ("POST", "/vm/branch/by_ref/{repo}/{tag}", self._branch_ref),
            ("DELETE", "/vm/{vm_id}", self._delete),
            ("GET", "/vm/{vm_id}/ssh_key", self._ssh_key),
            ("POST", "/vm/{vm_id}/exec", execution.run),
            ("POST", "/vm/{vm_id}/exec/stream", execution.stream),
            ("GET", "/vm/{vm_id}/files", execution.read_file),
            ("PUT", "/vm/{vm_id}/files", execution.write_file),
            ("GET", "/commits", self._commits),
            ("GET", "/commits/public", self._public_commits),
            ("PATCH", "/commits/{commit_id}", self._change_commit),
            ("DELETE", "/commits/{commit_id}", self._delete_commit),
            ("GET", "/vm/commits/{commit_id}/parents", self._parents),
            ("PATCH", "/vm/{vm_id}/label", self._relabel),
            ("POST", "/commit_tags", self._tag),
            ("POST", "/repositories/{repo}/tags", self._tag),
        ]
        if self._options.newer_endpoints:
            endpoints += [
                ("GET", "/vm", self._list),
                ("PUT", "/vm/{vm_id}/labels", self._label),
                ("GET", "/whoami", self._whoami),
            ]
        return [
            Route(PREFIX + path, self._guarded(method, path, endpoint), methods=[method])
            for method, path, endpoint in endpoints
        ]

    def _guarded(self, method: str, path: str, endpoint: Endpoint) -> Endpoint:
        """An endpoint that is counted, wants the key, and refuses in the service's words."""

        async def answer(request: Request) -> Response:
            self._counts.requests[f"{method} {path}"] += 1
            if vm_id := request.path_params.get("vm_id"):
                self._counts.asked_about[vm_id] += 1
            given = request.headers.get("authorization", "").encode()
            if not hmac.compare_digest(given, self._authorization):
                return forbidden()
            try:
                return await endpoint(request)
            except Refusal as refusal:
                return refusal.response
            except VersRlmError as error:
                return failed(500, str(error)).response

        return answer

    # Machines

    async def _list(self, _: Request) -> Response:
        own = [self._shown(vm) for vm in self._cloud.alive]
        return Json([*own, *self._cloud.foreign])

    async def _new_root(self, request: Request) -> Response:
        wanted = (await read_body(request, NewRoot)).vm_config
        given = wanted.model_dump(exclude_none=True, exclude={"labels", "kernel_name"})
        wait_boot = read_flag(request, "wait_boot")
        vm = await self._cloud.create(Config(**given), wanted.labels or {}, wait_boot=wait_boot)
        return JSONResponse({"vm_id": vm.id}, 201)

    async def _from_commit(self, request: Request) -> Response:
        given = (await read_body(request, FromCommit)).model_dump(exclude_none=True)
        if len(given) != 1:
            raise plain(400, "Exactly one of commit_id, tag_name and ref must be given")
        ((kind, value),) = given.items()
        if kind == "commit_id":
            commit_id = check_id(value, "commit_id")
        elif value in self._cloud.tags:
            commit_id = self._cloud.tags[value]
        else:
            raise failed(404, f"{kind} {value} not found")
        (vm,) = await self._cloud.restore(commit_id, _at(request))
        return JSONResponse({"vm_id": vm.id}, 201)

    async def _status(self, request: Request) -> Response:
        vm_id = read_id(request, "vm_id")
        foreign = self._cloud.foreign_vm(vm_id)
        return Json(foreign or self._shown(self._cloud.vm(vm_id)))

    async def _metadata(self, request: Request) -> Response:
        vm_id = read_id(request, "vm_id")
        if foreign := self._cloud.foreign_vm(vm_id):
            return Json(foreign)
        vm = self._cloud.vms.get(vm_id) or self._cloud.vm(vm_id)
        config = vm.image.config
        size = {"vcpu_count": config.vcpu_count, "mem_size_mib": config.mem_size_mib}
        shown = self._shown(vm)
        shown.pop("labels")
        return JSONResponse(
            {
                **shown,
                "ip": f"fd00:fe11:deed::{int(vm.id[:4], 16):x}",
                "parent_commit_id": vm.parent_commit,
                "grandparent_vm_id": vm.grandparent_vm,
                "deleted_at": vm.deleted_at,
                **(size if self._options.newer_endpoints else {}),
            }
        )

    async def _set_state(self, request: Request) -> Response:
        vm = await self._booted(request)
        await self._cloud.set_state(vm.id, (await read_body(request, NewState)).state)
        return Response()

    async def _resize(self, request: Request) -> Response:
        vm = await self._booted(request)
        self._cloud.resize(vm.id, (await read_body(request, Resize)).fs_size_mib)
        return Response()

    async def _delete(self, request: Request) -> Response:
        vm_id = read_id(request, "vm_id")
        await self._cloud.delete(vm_id)
        return JSONResponse({"vm_id": vm_id})

    async def _ssh_key(self, request: Request) -> Response:
        keys = self._cloud.vm(read_id(request, "vm_id")).image.keys
        private = keys.client.export_private_key("openssh").decode()
        return JSONResponse({"ssh_port": SSH_PORT, "ssh_private_key": private})

    async def _relabel(self, request: Request) -> Response:
        """Add to the labels."""
        vm = self._cloud.vm(read_id(request, "vm_id"))
        vm.labels |= (await read_body(request, Labels)).labels
        return Response()

    async def _label(self, request: Request) -> Response:
        """Replace the labels."""
        vm = self._cloud.vm(read_id(request, "vm_id"))
        vm.labels = (await read_body(request, Labels)).labels
        return Response()

    # Branches

    async def _branch(self, request: Request) -> Response:
        source = read_id(request, "vm_or_commit_id")
        if source in self._cloud.commits:
            return await self._copies(request, self._cloud.restore, source)
        return await self._live_copies(request, source)

    async def _branch_vm(self, request: Request) -> Response:
        source = read_id(request, "vm_id")
        if source not in {vm.id for vm in self._cloud.alive}:
            raise nothing_to_branch(f"VM {source} not found")
        return await self._live_copies(request, source)

    async def _branch_commit(self, request: Request) -> Response:
        source = read_id(request, "commit_id")
        if source not in self._cloud.commits:
            raise nothing_to_branch(f"commit {source} not found")
        return await self._copies(request, self._cloud.restore, source)

    async def _branch_tag(self, request: Request) -> Response:
        return await self._copies(request, self._cloud.branch_tag, request.path_params["tag"])

    async def _branch_ref(self, request: Request) -> Response:
        tag = "{repo}:{tag}".format_map(request.path_params)
        return await self._copies(request, self._cloud.branch_tag, tag)

    async def _live_copies(self, request: Request, source: str) -> Response:
        await self._booted(request, source)
        keep_paused = read_flag(request, "keep_paused")
        branch = partial(self._cloud.branch, keep_paused=keep_paused)
        return await self._copies(request, branch, source)

    async def _copies(self, request: Request, make: Copies, source: str) -> Response:
        count = read_number(request, "count", 1, MAX_BRANCHES)
        made = [{"vm_id": vm.id} for vm in await make(source, _at(request), count)]
        if self._options.branch_reply == "vms":
            return JSONResponse({"vms": made}, 201)
        return JSONResponse(made[0], 201)

    # Commits

    async def _commit(self, request: Request) -> Response:
        vm = await self._booted(request)
        given = NewCommit()
        if self._options.commit_needs_body or await request.body():
            given = await read_body(request, NewCommit)
        keep_paused = read_flag(request, "keep_paused")
        commit = await self._cloud.commit(
            vm.id, given.name, given.description, keep_paused=keep_paused
        )
        return JSONResponse({"commit_id": commit.id}, 201)

    async def _commits(self, request: Request) -> Response:
        return self._page(request, list(self._cloud.commits.values()))

    async def _public_commits(self, request: Request) -> Response:
        return self._page(request, [c for c in self._cloud.commits.values() if c.is_public])

    async def _change_commit(self, request: Request) -> Response:
        commit = self._cloud.commit_entry(read_id(request, "commit_id"))
        change = await read_body(request, ChangeCommit)
        commit.is_public = change.is_public
        commit.name = commit.name if change.name is None else change.name
        if change.description is not None:
            commit.description = change.description
        return JSONResponse({"commit_id": commit.id, **self._described(commit)})

    async def _delete_commit(self, request: Request) -> Response:
        await self._cloud.delete_commit(read_id(request, "commit_id"))
        return Response(status_code=204)

    async def _parents(self, request: Request) -> Response:
        commit = self._cloud.commit_entry(read_id(request, "commit_id"))
        parents = [self._cloud.commits.get(ancestor) for ancestor in commit.image.lineage]
        return JSONResponse([{"id": item.id, **self._described(item)} for item in parents if item])

    async def _tag(self, request: Request) -> Response:
        given = await read_body(request, NewTag)
        repo = request.path_params.get("repo")
        name = f"{repo}:{given.tag_name}" if repo else given.tag_name
        self._cloud.tag(name, check_id(given.commit_id, "commit_id"))
        reference = {"reference": name} if repo else {"tag_name": name}
        return JSONResponse(
            {"tag_id": str(uuid.uuid4()), "commit_id": given.commit_id, **reference}, 201
        )

    async def _whoami(self, _: Request) -> Response:
        owner = self._cloud.owner
        limits = {
            "max_vcpus": self._options.max_vcpus,
            "max_memory_mib": self._options.max_memory_mib,
        }
        return JSONResponse(
            {
                "user": {"id": owner, "email": "emulator@vers.test", "user_name": "emulator"},
                "org": {"id": owner, "name": "emulator"},
                "api_key": {"id": owner, "label": "emulator", "created_at": now(), **limits},
            }
        )

    # Helpers

    async def _booted(self, request: Request, vm_id: str = "") -> Vm:
        """The machine of a request, waited for while it boots unless that is not wanted."""
        vm = self._cloud.vm(vm_id or read_id(request, "vm_id"))
        if self._cloud.state(vm) == "booting":
            if read_flag(request, "skip_wait_boot"):
                raise failed(409, f"VM {vm.id} is still booting")
            await anyio.sleep(vm.booted_at - time.monotonic())
        return vm

    def _shown(self, vm: Vm) -> dict[str, object]:
        return {
            "vm_id": vm.id,
            "owner_id": self._cloud.owner,
            "created_at": vm.created_at,
            "state": self._cloud.state(vm),
            "labels": vm.labels,
        }

    def _described(self, commit: CommitEntry) -> dict[str, object]:
        return {
            "owner_id": self._cloud.owner,
            "created_at": commit.created_at,
            "name": commit.name,
            "description": commit.description,
            "is_public": commit.is_public,
            "parent_vm_id": commit.vm,
            "grandparent_commit_id": next(iter(commit.image.lineage), None),
        }

    def _page(self, request: Request, commits: Sequence[CommitEntry]) -> Response:
        limit = read_number(request, "limit", PAGE, MAX_PAGE)
        offset = read_number(request, "offset", 0, sys.maxsize)
        shown = [{"commit_id": item.id, **self._described(item)} for item in commits]
        page = shown[offset : offset + limit]
        return JSONResponse(
            {"commits": page, "total": len(shown), "limit": limit, "offset": offset}
        )


def _at(request: Request) -> str:
    """The place of a request, as faults name it."""
    return f"{request.method} {request.url.path.removeprefix(PREFIX)}"
