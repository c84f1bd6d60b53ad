"""A machine without isolation: a directory, whose programs are plain processes of this host.

It proves that the contract can be kept in another way, and makes tests of what needs machines fast.

``/workspace``, ``/tmp``, ``/run``, ``/root`` and ``/home`` are the machine's own. Every other path
is the host's and can only be read. An argument or environment value that starts with a path of the
machine's own is replaced by the real path before the program starts, so that
``spawn(["python3", "/run/kernel/guest.py", "/run/kernel/socket"])`` works. ``MACHINE_ROOT`` in the
environment holds the prefix, for programs that form such paths themselves.

A program sees the whole host, absolute paths within a shell script or behind a symlink are the
host's, and nothing is limited. The settings cannot select it.
"""

# ruff: noqa: D102 - the methods promise what the interface's docstrings say

from __future__ import annotations

import contextlib
import json
import os
import posixpath
import resource
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio
from anyio import to_thread
from anyio.abc import ByteReceiveStream
from anyio.streams.file import FileReadStream

from vers_rlm_mcp.errors import MachineError, MachineGone, PathRefused, unknown_handle
from vers_rlm_mcp.machines import (
    WORKSPACE,
    Backend,
    Capabilities,
    Commit,
    ExitStatus,
    Machine,
    MachineInfo,
    MachineSpec,
    Process,
    check_path,
)
from vers_rlm_mcp.machines.daemon.guest import sessions

from .fake_host import (
    KILL_SECONDS,
    ROOT_VARIABLE,
    Replacement,
    freeze,
    in_machine,
    kill,
    open_to_read,
    send_signal,
    translated,
    write_all,
)

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterable,
        Mapping,
        Sequence,
    )

    from anyio.abc import Process as HostProcess

OWN: Final = (WORKSPACE, "/tmp", "/run", "/root", "/home")  # noqa: S108 - a path in the machine

SEEN_SECONDS: Final = 0.02
"""How long what a killed process was connected to, such as a kernel, takes to see its end."""

CAPABILITIES: Final = Capabilities(
    isolation="none",
    fidelity="disk",
    root=False,
    network=True,
    notes=("A directory and plain processes of this host: for tests only.",),
)


class FakeProcess(Process):
    """A process of the host, in its own session."""

    def __init__(self, process: HostProcess, mark: int) -> None:
        stdin, stdout, stderr = process.stdin, process.stdout, process.stderr
        if not (stdin and stdout and stderr):
            raise ValueError("the process was not started with three pipes")
        self.stdin, self.stdout, self.stderr = stdin, stdout, stderr
        self._process = process
        self._mark = mark

    async def wait(self) -> ExitStatus:
        status = await self._process.wait()
        return ExitStatus(status) if status >= 0 else ExitStatus(None, -status)

    async def kill(self) -> None:
        reaped = self._process.returncode is not None
        job = partial(sessions.kill, self._process.pid, self._mark, reaped=reaped)
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(job)
            await anyio.sleep(SEEN_SECONDS)

    async def aclose(self) -> None:
        with anyio.move_on_after(KILL_SECONDS, shield=True):
            if self._process.returncode is None:
                await self.kill()
            await self._process.aclose()


class FakeMachine(Machine):
    """A directory whose programs are processes of the host."""

    backend = "fake"
    capabilities = CAPABILITIES

    def __init__(self, backend: FakeBackend, machine_id: str) -> None:
        self.id = machine_id
        self._backend = backend
        self._home = backend.machines / machine_id
        self._root = self._home / "root"

    async def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> FakeProcess:
        self._check()
        own = {"HOME": "/root", "TMPDIR": "/tmp", "PATH": _path(), "LANG": "C.UTF-8"}  # noqa: S108
        variables = {name: self._mapped(value) for name, value in {**own, **(env or {})}.items()}
        variables[ROOT_VARIABLE] = str(self._root)
        try:
            process = await anyio.open_process(
                [self._mapped(argument) for argument in argv],
                stdin=subprocess.PIPE,
                env=variables,
                cwd=self._locate(cwd or WORKSPACE),
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise PathRefused(
                f"Cannot start {argv[0]!r} in {cwd or WORKSPACE!r}: {error}"
            ) from error
        mark = time.monotonic_ns()
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(process.pid, sessions.MARK, (mark, resource.RLIM_INFINITY))
        return FakeProcess(process, mark)

    async def read(
        self, path: str, *, offset: int = 0, length: int | None = None
    ) -> ByteReceiveStream:
        self._check()
        real = self._locate(path)
        with translated(path):
            descriptor = await to_thread.run_sync(open_to_read, real, offset)
        return _Slice(FileReadStream(os.fdopen(descriptor, "rb", buffering=0)), length)

    async def write(
        self, path: str, data: bytes | AsyncIterable[bytes], *, mode: int = 0o644
    ) -> int:
        self._check()
        real = self._locate(path)
        if self._root not in real.parents:
            raise PathRefused(f"Cannot write {path!r}: only {', '.join(OWN)} can be written here.")
        size = 0
        with translated(path):
            new = await to_thread.run_sync(Replacement, real, mode)
        try:
            async for chunk in _chunks(data):
                with translated(path):  # not errors of the source
                    size += await to_thread.run_sync(write_all, new.file, chunk)
            with translated(path):
                new.finish()
        finally:
            new.discard()
        return size

    async def snapshot(self, *, intent: str | None = None) -> Commit:
        self._check()
        commit = Commit(
            id=_new_id("commit"),
            machine_id=self.id,
            created_at=time.time(),
            fidelity=CAPABILITIES.fidelity,
            intent=intent,
        )
        await self._copy_frozen(self._backend.commits_dir / commit.id, asdict(commit))
        return commit

    async def branch(
        self, count: int = 1, *, labels: Mapping[str, str] | None = None
    ) -> Sequence[FakeMachine]:
        self._check()
        spec = (await self.info()).spec
        scratch = self._backend.making / _new_id("branch")
        made: list[FakeMachine] = []
        try:
            await self._copy_frozen(scratch, {})
            for _ in range(count):
                made.append(await self._backend.make(spec, labels, self.id, scratch))  # noqa: PERF401 - what was made so far is needed after an error
        except BaseException:
            for machine in made:
                await machine.delete()
            raise
        finally:
            await _remove(scratch)
        return made

    async def info(self) -> MachineInfo:
        self._check()
        return _machine_info(self._home)

    async def delete(self) -> None:
        await self._backend.delete(self.id)

    def _check(self) -> None:
        if not self._home.is_dir():
            raise MachineGone(f"Machine {self.id} was deleted; what ran on it is lost.")

    def _mapped(self, text: str) -> str:
        own = any(text == top or text.startswith(f"{top}/") for top in OWN)
        # The running Python may lie below one of them, and is the host's nevertheless.
        own = own and not text.startswith((f"{sys.prefix}/", f"{sys.base_prefix}/"))
        return f"{self._root}{text}" if own else text

    def _locate(self, path: str) -> Path:
        check_path(path)
        return Path(self._mapped(posixpath.normpath(path)))

    async def _copy_frozen(self, target: Path, about: dict[str, Any]) -> None:
        """Copy the tree while every process of the machine is stopped."""
        frozen = freeze(self._root)
        try:
            await self._backend.place(self._root, target, about)
        finally:
            send_signal(frozen, signal.SIGCONT)


class FakeBackend(Backend):
    """Keeps machines and commits as directories below `root`.

    Without `root`, they are kept in a temporary directory, which closing the backend removes.
    """

    name = "fake"
    capabilities = CAPABILITIES

    def __init__(self, root: Path | None = None) -> None:
        self._temporary = root is None
        self._root = root or Path(tempfile.mkdtemp(prefix="fake-"))
        self.machines = self._root / "machines"
        self.commits_dir = self._root / "commits"
        self.making = self._root / "making"
        for directory in (self.machines, self.commits_dir, self.making):
            directory.mkdir(parents=True, exist_ok=True)

    async def create(
        self, spec: MachineSpec | None = None, *, labels: Mapping[str, str] | None = None
    ) -> FakeMachine:
        return await self.make(spec, labels, None, None)

    async def attach(self, machine_id: str) -> FakeMachine:
        known = [info.id for info in await self.list()]
        if machine_id not in known:
            raise unknown_handle("machine", machine_id, known)
        return FakeMachine(self, machine_id)

    async def restore(
        self,
        commit_id: str,
        spec: MachineSpec | None = None,
        *,
        labels: Mapping[str, str] | None = None,
    ) -> FakeMachine:
        known = [commit.id for commit in await self.commits()]
        if commit_id not in known:
            raise unknown_handle("commit", commit_id, known)
        return await self.make(spec, labels, commit_id, self.commits_dir / commit_id)

    async def list(self) -> Sequence[MachineInfo]:
        infos = [_machine_info(home) for home in self.machines.iterdir()]
        return sorted(infos, key=lambda info: info.created_at)

    async def commits(self) -> Sequence[Commit]:
        commits = [_commit(home) for home in self.commits_dir.iterdir()]
        return sorted(commits, key=lambda commit: commit.created_at)

    async def delete(self, machine_id: str) -> None:
        home = self.machines / machine_id
        if machine_id in {info.id for info in await self.list()}:
            doomed = home.rename(self.making / machine_id)
            await kill(lambda: in_machine(home / "root"))
            await _remove(doomed)

    async def delete_commit(self, commit_id: str) -> None:
        if commit_id in {commit.id for commit in await self.commits()}:
            await _remove((self.commits_dir / commit_id).rename(self.making / commit_id))

    async def aclose(self) -> None:
        if self._temporary and self._root.is_dir():
            for info in await self.list():
                await self.delete(info.id)
            await _remove(self._root)

    async def make(
        self,
        spec: MachineSpec | None,
        labels: Mapping[str, str] | None,
        parent: str | None,
        source: Path | None,
    ) -> FakeMachine:
        """Make a machine with a copy of the tree in `source`, or an empty one."""
        machine_id = _new_id("fake")
        about = {
            "id": machine_id,
            "created_at": time.time(),
            "parent": parent,
            "labels": dict(labels or {}),
            "spec": asdict(spec or MachineSpec()),
        }
        await self.place(source and source / "root", self.machines / machine_id, about)
        return FakeMachine(self, machine_id)

    async def place(self, source: Path | None, target: Path, about: dict[str, Any]) -> None:
        """Put a copy of a tree and its description at `target`, whole or not at all."""
        building = self.making / secrets.token_hex(8)
        try:
            (building / "root").mkdir(parents=True)
            (building / "about.json").write_text(json.dumps(about))
            if source is None:
                for top in OWN:
                    (building / f"root{top}").mkdir()
            else:
                await anyio.run_process(["cp", "-a", f"{source}/.", f"{building}/root"])
            building.rename(target)
        except subprocess.CalledProcessError as error:
            raise MachineError(f"The machine's files cannot be copied: {error.stderr!r}") from error
        finally:
            await _remove(building)


class _Slice(ByteReceiveStream):
    """The first `length` bytes of another stream; all of it if None."""

    def __init__(self, stream: ByteReceiveStream, length: int | None) -> None:
        self._stream = stream
        self._left = length

    async def receive(self, max_bytes: int = 65536) -> bytes:
        if self._left is None:
            return await self._stream.receive(max_bytes)
        if self._left == 0:
            raise anyio.EndOfStream
        chunk = await self._stream.receive(min(max_bytes, self._left))
        self._left -= len(chunk)
        return chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


async def _chunks(data: bytes | AsyncIterable[bytes]) -> AsyncIterable[bytes]:
    if isinstance(data, bytes):
        yield data
    else:
        async for chunk in data:
            yield chunk


async def _remove(directory: Path) -> None:
    """Remove a tree that may not exist, even when cancelled."""
    with anyio.CancelScope(shield=True):
        await to_thread.run_sync(lambda: shutil.rmtree(directory, ignore_errors=True))


def _about(home: Path) -> dict[str, Any]:
    return json.loads((home / "about.json").read_text())


def _machine_info(home: Path) -> MachineInfo:
    about = _about(home)
    about["spec"] = MachineSpec(**about["spec"])
    return MachineInfo(backend="fake", running=True, **about)


def _commit(home: Path) -> Commit:
    about = _about(home)
    about["notes"] = tuple(about["notes"])
    return Commit(**about)


def _new_id(kind: str) -> str:
    return f"{kind}-{secrets.token_hex(4)}"


def _path() -> str:
    """The usual directories, then that of our own Python, so that there is a python3."""
    usual = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return f"{usual}:{Path(sys.executable).parent}"
