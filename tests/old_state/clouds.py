"""What the emulated Vers service knows, which it keeps in memory only: frozen, and thawed.

A frozen disk holds no process. On the real service kernels live on in machines for as long as
these do, whatever becomes of the program that started them; `start_old_kernel` therefore starts a
kernel of the frozen version, from its own program, and talks to it in that version's words.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import anyio

from vers_emulator import kernels
from vers_emulator.vms import CommitEntry, Config, Image, Keys, Vm

if TYPE_CHECKING:
    from collections.abc import Container, Mapping
    from pathlib import Path

    from vers_emulator.vms import Cloud
    from vers_rlm_mcp.machines import Backend, Machine, Process

PROGRAMS: Final = "programs"
"""The directory of the frozen version's programs for machines, beside the state directory."""

KERNEL: Final = "kernel.pyz"
"""The kernel's own program, in `PROGRAMS`."""

QUEUE: Final = "queue.py"
"""What the emulator puts into machines to let kernels live on in copies, in `PROGRAMS`."""

ENTRY: Final = "entry"
"""What the frozen version has Python run to attach to a kernel, in `PROGRAMS`."""

RUN: Final = "/run/vers-rlm"
VARIABLES: Final = "/workspace/.vers-rlm/variables"
PROTOCOL: Final = 1
"""As 782d823 has them."""

IN_MEMORY: Final = "import threading\nin_memory = threading.Lock()"
"""A variable that no disk carries: whoever finds it is attached to the old process."""

KERNEL_SECONDS: Final = 30.0
_LENGTHS: Final = struct.Struct("!II")


async def freeze(cloud: Cloud) -> dict[str, Any]:
    """The machines and commits of a service, whose kernels have written their variables down."""
    return {
        "owner": cloud.owner,
        "vms": [
            {
                "id": vm.id,
                "machine": vm.machine.id,
                "labels": vm.labels,
                "parent_commit": vm.parent_commit,
                "grandparent_vm": vm.grandparent_vm,
                "created_at": vm.created_at,
                "has_kernel": await kernels.save(vm.machine),
                **_described(vm.image),
            }
            for vm in cloud.alive
        ],
        "commits": [
            {
                "id": commit.id,
                "snapshot": commit.snapshot,
                "vm": commit.vm,
                "has_kernel": commit.has_kernel,
                "name": commit.name,
                "description": commit.description,
                "created_at": commit.created_at,
                **_described(commit.image),
            }
            for commit in cloud.commits.values()
        ],
    }


async def thaw(
    cloud: Cloud,
    backend: Backend,
    frozen: Mapping[str, Any],
    programs: Path,
    *,
    with_kernels: Container[str],
) -> None:
    """Give a new service what a frozen one had.

    The machines `with_kernels` get back the kernels that they had, of the frozen version.
    """
    cloud.owner = frozen["owner"]
    machines: dict[str, Machine] = {}

    async def start(about: Mapping[str, Any]) -> None:
        machine = await backend.attach(about["machine"])
        if about["has_kernel"] and about["id"] in with_kernels:
            await start_old_kernel(machine, about["id"], programs)
        machines[about["id"]] = machine

    async with anyio.create_task_group() as tasks:
        for about in frozen["vms"]:
            tasks.start_soon(start, about)
    for about in frozen["vms"]:
        vm = Vm(
            machines[about["id"]],
            _image(about),
            dict(about["labels"]),
            about["parent_commit"],
            about["grandparent_vm"],
            id=about["id"],
            created_at=about["created_at"],
        )
        vm.awake.set()
        cloud.vms[vm.id] = vm
    for about in frozen["commits"]:
        commit = CommitEntry(
            about["snapshot"],
            _image(about),
            about["vm"],
            about["has_kernel"],
            about["name"],
            about["description"],
            id=about["id"],
            created_at=about["created_at"],
        )
        cloud.commits[commit.id] = commit


async def start_old_kernel(machine: Machine, home_id: str, programs: Path) -> None:
    """Start a kernel of the frozen version that has the variables on the machine's disk."""
    archive = f"{RUN}/{KERNEL}"
    sent = f"{archive}.sent"
    for path, name in ((f"{kernels.DIRECTORY}/{QUEUE}", QUEUE), (sent, KERNEL)):
        await machine.write(path, (programs / name).read_bytes())
    entry = (programs / ENTRY).read_text()
    argv = ["python3", "-S", "-c", entry, sent, archive, RUN, VARIABLES, "attach"]
    process = await machine.spawn(argv, env=kernels.ENVIRONMENT)
    with anyio.fail_after(KERNEL_SECONDS):
        hello = {"home": home_id, "current": home_id, "limit": 2**20, "saving": False}
        await _send(process, "hello", hello | {"protocol": PROTOCOL, "memory": None})
        assert (await _receive(process, "ready"))["protocol"] == PROTOCOL
        await _send(process, "restore", {"id": 1})
        assert (await _receive(process, "done"))["ok"]
        await _send(process, "run", {"id": 2, "cell": 1}, IN_MEMORY.encode())
        assert (await _receive(process, "done"))["ok"]
        # The kernel is a child of this process, which ends once it has been let go.
        for stream in (process.stdin, process.stdout, process.stderr):
            await stream.aclose()
        await process.wait()


async def _send(
    process: Process, kind: str, fields: Mapping[str, Any], payload: bytes = b""
) -> None:
    header = json.dumps({"kind": kind, **fields}).encode()
    await process.stdin.send(_LENGTHS.pack(len(header), len(payload)) + header + payload)


async def _receive(process: Process, kind: str) -> dict[str, Any]:
    """The header of the next frame of this kind."""
    data = b""
    while True:
        while len(data) < _LENGTHS.size:
            data += await process.stdout.receive()
        header, payload = _LENGTHS.unpack_from(data)
        while len(data) < _LENGTHS.size + header + payload:
            data += await process.stdout.receive()
        fields = json.loads(data[_LENGTHS.size : _LENGTHS.size + header])
        data = data[_LENGTHS.size + header + payload :]
        if fields["kind"] == kind:
            return fields


def _described(image: Image) -> dict[str, Any]:
    return {"config": asdict(image.config), "lineage": list(image.lineage)}


def _image(about: Mapping[str, Any]) -> Image:
    """With keys of its own: clients remember a machine's only while they run."""
    return Image(Keys.new(), Config(**about["config"]), tuple(about["lineage"]))
