"""The parts of the package `microsandbox` that are used. No other module knows its names.

Its version is pinned: names of its API have changed within 0.7 more than once.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from functools import cached_property
from importlib import import_module
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio

from vers_rlm_mcp.errors import BackendUnavailable, MachineError

from .faults import INSTALL, NoSuchSandbox, NoSuchSnapshot, translated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from ..base import Fidelity, MachineSpec
    from .config import MicrosandboxConfig

LIVE: Final = frozenset({"created", "starting", "running"})
"""States in which a machine works, or soon will."""

PAUSED: Final = "paused"

COPY_SECONDS: Final = 120.0
"""To copy or freeze a machine: milliseconds to seconds. It is awaited even after a cancellation,
because the package pauses and then stops a machine whose copy is abandoned."""

JOURNAL_MIB: Final = 72
"""The overhead of a machine's disk: 67 to 70 MiB of 96 to 256 were measured."""


class Library:
    """Calls into the package, with its errors translated."""

    @cached_property
    def package(self) -> Any:
        """The package. Raises `BackendUnavailable` if it cannot be imported."""
        try:
            return import_module("microsandbox")
        except ImportError as error:
            raise BackendUnavailable(
                f"The package microsandbox cannot be used: {error}. {INSTALL}."
            ) from None

    def doing(self, what: str) -> AbstractContextManager[None]:
        """Translate the errors that are raised inside the context."""
        return translated(what, self.package.MicrosandboxError)

    # Machines

    async def create(
        self, name: str, image: str, spec: MachineSpec, config: MicrosandboxConfig
    ) -> None:
        """Boot a machine from an image in the store."""
        package = self.package
        with self.doing(f"make machine {name}"):
            sandbox = await package.Sandbox.create(
                name,
                image=package.Image.oci(image, root_disk=_disk_mib(spec)),
                cpus=spec.vcpu_count,
                memory=spec.mem_size_mib,
                hostname=name,
                workdir="/",
                pull_policy=package.PullPolicy.NEVER,
                network=self._network(config),
                max_duration=config.max_seconds,
                detached=True,
            )
            await sandbox.detach()

    async def boot(self, name: str, root: str) -> None:
        """Boot a machine that has nothing but a kernel and an empty directory."""
        package = self.package
        with self.doing("boot a machine"):
            await package.Sandbox.create(
                name,
                image=package.Image.bind(root),
                cpus=1,
                memory=128,
                network=package.Network.none(),
                detached=True,
            )

    async def fork(self, name: str, names: Sequence[str]) -> None:
        """Copy a machine with its memory, all copies from one instant.

        Uses the package's command, because its Python API has no switch to inherit a network policy
        and refuses to copy machines that have one.
        """
        with self.doing(f"branch machine {name}"):
            await self._copy(NoSuchSandbox, "fork", name, "--names", *names)

    async def states(self) -> Mapping[str, str]:
        """Every machine that the library knows, with its state."""
        with self.doing("list machines"):
            states: dict[str, str] = {}
            page = await self.package.Sandbox.list()
            while True:
                states |= {sandbox.name: str(sandbox.status) for sandbox in page.sandboxes}
                if page.next_cursor is None:
                    return states
                page = await self.package.Sandbox.list_with(cursor=page.next_cursor)

    async def state(self, name: str) -> str | None:
        """The state of a machine; None when there is no such machine."""
        try:
            with self.doing(f"look at machine {name}"):
                return str((await self.package.Sandbox.get(name)).status)
        except NoSuchSandbox:
            return None

    async def wake(self, name: str) -> None:
        """Resume a machine; one that was stopped boots from its disk."""
        with self.doing(f"start machine {name}"):
            handle = await self.package.Sandbox.get(name)
            if handle.status == PAUSED:
                await handle.resume()
            elif handle.status not in LIVE:
                await (await handle.start(detached=True)).detach()

    async def destroy(self, name: str) -> None:
        """Remove a machine, whatever runs on it. One that is gone is no error."""
        try:
            with self.doing(f"delete machine {name}"):
                handle = await self.package.Sandbox.get(name)
                await handle.destroy(force=True)
        except NoSuchSandbox:
            return

    async def stream(self, name: str, command: str) -> Any:
        """Run a shell command with a pipe as its input. Returns the package's `ExecHandle`."""
        package = self.package
        with self.doing(f"connect to machine {name}"):
            sandbox = await (await package.Sandbox.get(name)).connect()
            return await sandbox.exec_stream(
                "sh", ["-c", command], cwd="/", stdin=package.Stdin.pipe()
            )

    async def _copy(self, gone: type[MachineError], *arguments: str) -> None:
        """Copy a machine with the package's command. Raises `gone` if there is none."""
        program = self.package.resolve_runtime().msb_path
        argv = (program, *arguments, "--quiet", "--dangerously-inherit-resources")
        with anyio.fail_after(COPY_SECONDS, shield=True):
            result = await anyio.run_process(argv, check=False, stderr=subprocess.STDOUT)
        words = result.stdout.decode(errors="replace")
        if result.returncode and "not found" in words:
            raise gone(words)
        if result.returncode:
            raise self.package.MicrosandboxError(words)

    # Snapshots

    async def snapshot(self, name: str, commit: str) -> tuple[Fidelity, str]:
        """Freeze a machine, with its memory if possible.

        Each snapshot gets its own group: the newest one of a larger group cannot be removed, and a
        machine's group is deleted with the machine.

        Returns:
            What the snapshot carries and, if that is only the disk, why.
        """

        async def take(*, full: bool) -> None:
            with self.doing(f"snapshot machine {name}"):
                with anyio.fail_after(COPY_SECONDS, shield=True):
                    await self.package.Snapshot.create(
                        commit, from_sandbox=name, group=commit, full=full
                    )

        try:
            await take(full=True)
        except MachineError as error:
            if await self.state(name) not in LIVE:
                raise
            await self.remove_snapshot(commit)  # a partial one would be in the way
            await take(full=False)
            return "disk", str(error)
        return "memory", ""

    async def restore(
        self,
        commit: str,
        name: str,
        fidelity: Fidelity,
        spec: MachineSpec | None,
        config: MicrosandboxConfig,
    ) -> None:
        """Make a machine from a snapshot; its memory is shared until either side writes to it.

        Uses the package's command, because its Python API cannot set the network policy. Snapshots
        do not contain it, and without one a machine may reach every public address.
        """
        options = [*_network_options(config)]
        if fidelity == "memory":
            options.append("--cow-mem")
        if spec and spec.vcpu_count:
            options.append(f"--cpus={spec.vcpu_count}")
        if spec and spec.mem_size_mib:
            options.append(f"--memory={spec.mem_size_mib}M")
        if config.max_seconds:
            options.append(f"--max-duration={ceil(config.max_seconds)}s")
        with self.doing(f"restore commit {commit}"):
            await self._copy(
                NoSuchSnapshot, "restore", f"{commit}:{commit}", "--name", name, *options
            )

    async def snapshots(self) -> Mapping[str, str]:
        """Our snapshots, each with the directory that it is in."""
        with self.doing("list commits"):
            return {
                snapshot.name: snapshot.reference
                for snapshot in await self.package.Snapshot.list()
                if snapshot.group == snapshot.name
            }

    async def remove_snapshot(self, commit: str) -> None:
        """Remove a snapshot; machines made from it live on. One that is gone is no error."""
        directory = (await self.snapshots()).get(commit)
        try:
            with self.doing(f"delete commit {commit}"):
                await self.package.Snapshot.remove(f"{commit}:{commit}", force=True)
        except NoSuchSnapshot:
            return
        if directory:
            shutil.rmtree(Path(directory).parent, ignore_errors=True)  # its locks are left

    async def prune(self) -> None:
        """Remove the memory of snapshots and copies that no machine shares any more."""
        with self.doing("remove memory that is not used"):
            await self.package.Storage.prune()

    # Images

    async def has_image(self, reference: str) -> bool:
        """Whether the store has an image."""
        with self.doing("list images"):
            return any(image.reference == reference for image in await self.package.Image.list())

    async def load_image(self, path: str, tag: str) -> None:
        """Load an image from a docker-archive, under a tag."""
        with self.doing(f"load the image in {path}"):
            await self.package.Image.load(path, tag=tag)

    async def pull_image(self, reference: str, name: str) -> AsyncIterator[str]:
        """Pull an image by booting a temporary machine from it. Yields its progress as lines."""
        package = self.package
        with self.doing(f"pull image {reference}"):
            async with package.Sandbox.create_with_progress(
                name, image=reference, network=package.Network.none(), ephemeral=True
            ) as session:
                async for event in session.progress:
                    yield _progress_line(event)
                await session.result()

    # Settings

    def _network(self, config: MicrosandboxConfig) -> Any:
        package = self.package
        if config.network == "off":
            return package.Network.none()
        if config.network == "host":
            return package.Network.allow_all()
        named = [package.Destination.domain(domain) for domain in config.network_domains]
        public = package.Destination.group(package.DestGroup.PUBLIC)
        allowed = [package.Rule.allow(destination=each) for each in named or (public,)]
        return package.Network(
            policy=package.NetworkPolicy(
                default_ingress=package.Action.DENY, rules=(*package.Rule.allow_dns(), *allowed)
            )
        )


def _network_options(config: MicrosandboxConfig) -> Sequence[str]:
    """The policy of `_network`, as options of the package's command."""
    if config.network == "off":
        return ("--no-net",)
    if config.network == "host":
        return ("--net-default", "allow")
    targets = ("dns", *(config.network_domains or ("public",)))
    return ("--net-default", "deny", "--net-rule", ",".join(f"allow@{each}" for each in targets))


def _disk_mib(spec: MachineSpec) -> int | None:
    return spec.fs_size_mib and spec.fs_size_mib + JOURNAL_MIB


def _progress_line(event: Any) -> str:
    """A line on the progress of a pull."""
    facts = {
        name: getattr(event, name, None)
        for name in ("layer_index", "downloaded_bytes", "total_bytes")
    }
    return json.dumps({"event": str(event.event_type), **{k: v for k, v in facts.items() if v}})
