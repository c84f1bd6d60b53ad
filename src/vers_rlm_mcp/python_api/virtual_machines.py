"""`Machines`: machines in a program's own hands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from vers_rlm_mcp import runs
from vers_rlm_mcp.errors import InputError
from vers_rlm_mcp.machines import MachineSpec

from .session import Session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vers_rlm_mcp.machines import Commit, MachineInfo
    from vers_rlm_mcp.settings import Settings
    from vers_rlm_mcp.values import CellResult

OUTPUT_BYTES = 10 * 1024 * 1024
"""Bytes of each stream of a command that are kept: beginning and end, with the gap marked."""

READ_BYTES = 64 * 1024 * 1024
"""Bytes of a file that `VM.read` returns unless it is asked for more."""


class Machines(Session):
    """Makes machines, with the backends, ledger and clean-up of the server.

    ::

        async with Machines() as machines:
            vm = await machines.create()
            await vm.exec("make test")
            a, b = await vm.branch(2)

    Leaving the ``async with`` deletes every machine that was not made with ``keep=True``.

    Args:
        settings: Any setting of the README's table by its flag's name, as in
            ``max_machines=4``. `backend` may also be a `Backend` of your own, which is closed at
            the end.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(settings)
        self._workbench: runs.Workbench | None = None

    async def __aenter__(self) -> Self:
        """Open the backend. Raises `BackendUnavailable`, whose message says what to do."""
        await super().__aenter__()
        self._workbench = runs.Workbench(self._require_open(), self._settings)
        self._resources.push_async_callback(self._workbench.aclose)
        return self

    async def create(
        self,
        *,
        vcpu_count: int | None = None,
        mem_size_mib: int | None = None,
        fs_size_mib: int | None = None,
        keep: bool = False,
    ) -> VM:
        """Make a machine; sizes default to the settings. With `keep` it outlives this program."""
        spec = MachineSpec(
            vcpu_count=vcpu_count, mem_size_mib=mem_size_mib, fs_size_mib=fs_size_mib
        )
        return self._handle(await self._bench.create(spec, keep=keep))

    async def attach(self, machine_id: str) -> VM:
        """A handle on an existing machine. Raises `UnknownHandle`, which names those there are."""
        return self._handle(await (await self._bench.machine(machine_id)).info())

    async def restore(self, commit_id: str) -> VM:
        """Make a machine from a commit. Raises `UnknownHandle`."""
        return self._handle(await self._bench.restore(commit_id))

    async def list(self) -> Sequence[MachineInfo]:
        """Every machine of the backend, oldest first."""
        return await self._require_open().list()

    async def commits(self) -> Sequence[Commit]:
        """Every commit of the backend, oldest first, without the checkpoints of runs."""
        return await self._require_open().snapshots()

    async def delete_commit(self, commit_id: str) -> None:
        """Delete a commit; machines made from it live on. One that is gone is no error."""
        await self._require_open().delete_commit(commit_id)

    @property
    def _bench(self) -> runs.Workbench:
        self._require_open()
        assert self._workbench
        return self._workbench

    def _handle(self, info: MachineInfo) -> VM:
        return VM(info.id, self._bench, self._settings)


class VM:
    """A machine: files, processes and a Python REPL that can be snapshotted and branched.

    Paths that are not absolute are below `/workspace`. Every method raises `MachineGone` once the
    machine was deleted.
    """

    def __init__(self, machine_id: str, bench: runs.Workbench, settings: Settings) -> None:
        self.id = machine_id
        self._bench = bench
        self._settings = settings

    async def exec(
        self, command: str, *, timeout: float | None = None, cwd: str | None = None
    ) -> CommandOutput:
        """Run a shell command.

        Args:
            command: For bash or, where there is none, sh.
            timeout: Seconds until it is killed; by default the setting ``exec_timeout``.
            cwd: Its working directory, by default `/workspace`.
        """
        result = await self._bench.exec(
            command, machine_id=self.id, timeout=timeout, cwd=cwd, limit=OUTPUT_BYTES
        )
        return CommandOutput(
            stdout=result.stdout.text,
            stderr=result.stderr.text,
            exit_code=result.exit_code,
            seconds=result.seconds,
        )

    async def python(self, code: str, *, timeout: float | None = None) -> CellResult:
        """Run code in the machine's REPL, whose variables last from call to call.

        Raises `KernelBusy` while another call runs there.
        """
        seconds = timeout or self._settings.cell_timeout
        result, _ = await runs.run_cell(self._bench, code, timeout=seconds, machine_id=self.id)
        return result

    async def read(self, path: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """A regular file's bytes from `offset` (negative: from its end), at most `length`.

        Raises:
            InputError: Without `length`, the file is larger than 64 MiB.
            PathRefused: It is no regular file that can be read.
        """
        limit = READ_BYTES + 1 if length is None else length
        data = await self._bench.read_file(path, machine_id=self.id, offset=offset, length=limit)
        if length is None and len(data) > READ_BYTES:
            raise InputError(
                f"{path} is larger than {READ_BYTES >> 20} MiB; read it in pieces, with `offset` "
                "and `length`."
            )
        return data

    async def write(self, path: str, data: bytes | str) -> int:
        """Write a file, text as UTF-8, with missing parent directories; return its size."""
        return await self._bench.write_file(
            path,
            data.encode() if isinstance(data, str) else data,
            machine_id=self.id,
        )

    async def snapshot(self) -> Commit:
        """Commit the machine; it keeps running. `Machines.restore` takes the commit's id."""
        return (await self._bench.snapshot(self.id)).commit

    async def branch(self, count: int = 1) -> Sequence[VM]:
        """Make `count` running copies of this machine, all from the same instant."""
        made = await self._bench.branch(count, self.id)
        return [VM(machine_id, self._bench, self._settings) for machine_id in made.ids]

    async def delete(self) -> None:
        """Delete the machine. Commits made from it, and machines branched from it, live on."""
        await self._bench.delete(self.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandOutput:
    """How a command of `VM.exec` ended, and what it wrote (at most 10 MiB of each stream)."""

    stdout: str
    stderr: str
    exit_code: int | None
    """128 + N after signal N, as in a shell; None if it was killed at its time limit."""
    seconds: float
