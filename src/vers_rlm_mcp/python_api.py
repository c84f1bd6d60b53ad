"""The Python API: `RLM` runs tasks, `Machines` makes machines. Provisional until 1.0.

Both use the settings, backends, ledger and clean-up of the server and the command line. What is not
exported by the package itself is private.
"""

from __future__ import annotations

import math
import posixpath
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import anyio
from pydantic import ValidationError

from vers_rlm_mcp import rlm, runs
from vers_rlm_mcp.errors import InputError, SettingsError
from vers_rlm_mcp.events import Event
from vers_rlm_mcp.machines import WORKSPACE, Backend, MachineSpec, open_fleet
from vers_rlm_mcp.models import Model, open_model
from vers_rlm_mcp.settings import Settings
from vers_rlm_mcp.store import Journals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from types import TracebackType

    from anyio.abc import TaskGroup
    from anyio.streams.memory import MemoryObjectSendStream

    from vers_rlm_mcp.machines import Commit, Fleet, MachineInfo
    from vers_rlm_mcp.values import CellResult

    Perform = Callable[[Callable[[Event], None]], Awaitable[runs.RunResult]]

OUTPUT_BYTES = 10 * 1024 * 1024
"""Bytes of each stream of a command that are kept: beginning and end, with the gap marked."""

READ_BYTES = 64 * 1024 * 1024
"""Bytes of a file that `VM.read` returns unless it is asked for more."""

OPTIONS = {field.name for field in fields(runs.RunRequest)} - {"signature", "inputs"}
"""What a call of `RLM` takes besides inputs."""


class _Session:
    """An open fleet and its settings, between ``__aenter__`` and ``__aexit__``."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        backend = settings.get("backend")
        self._backend = backend if isinstance(backend, Backend) else None
        if self._backend:
            settings = {name: value for name, value in settings.items() if name != "backend"}
        try:
            self._settings = Settings(**settings)
        except ValidationError as error:
            faults = [f"{fault['loc'][0]}: {fault['msg']}" for fault in error.errors()]
            raise SettingsError(
                f"{'; '.join(faults)}. The settings are {', '.join(Settings.model_fields)}."
            ) from None
        self._resources = AsyncExitStack()
        self._fleet: Fleet | None = None

    @property
    def settings(self) -> Settings:
        """The settings in force: keywords, else the environment, else defaults."""
        return self._settings

    async def __aenter__(self) -> Self:
        self._fleet = await self._resources.enter_async_context(
            open_fleet(self._settings, self._backend)
        )
        await self._fleet.sweep()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._fleet = None
        await self._resources.aclose()

    def _opened(self) -> Fleet:
        if self._fleet is None:
            name = type(self).__name__
            raise RuntimeError(f"{name} is not open; use it inside `async with {name}(…) as …:`.")
        return self._fleet


class RLM(_Session):
    """Runs tasks: a model writes Python in a machine until it hands in typed outputs.

    ::

        async with RLM(model="anthropic:claude-opus-4-5") as rlm:
            result = await rlm("log, task -> cause: str", log=Path("access.log"), task="Why?")
            result.outputs["cause"]

    An instance may perform many runs at once, each on machines of its own. Leaving the
    ``async with`` cancels what is under way and deletes every machine that was not to be kept.

    Args:
        model: The model that writes the code, as ``provider:model``. None takes the provider
            whose key is set.
        sub_model: The model that ``llmQuery`` asks; by default `model`.
        settings: Any setting of the README's table by its flag's name, as in ``max_usd=2.0`` or
            ``backend="bubblewrap"``. `backend` may also be a `Backend` of your own, which is
            closed at the end.

    Raises:
        SettingsError: A setting is unknown or has a wrong value.
    """

    def __init__(
        self, model: str | None = None, sub_model: str | None = None, **settings: Any
    ) -> None:
        named = {"model": model, "sub_model": sub_model}
        super().__init__(settings | {name: value for name, value in named.items() if value})
        self._models: dict[str | None, Model] = {}
        self._tasks: TaskGroup | None = None

    async def __aenter__(self) -> Self:
        """Open the backend and the model.

        Raises:
            BackendUnavailable: No machine can be made; the message says what to do.
            ModelUnavailable: `model` was named and cannot be used.
        """
        if self._settings.model:
            self._model(self._settings.model)
        await super().__aenter__()
        self._tasks = await anyio.create_task_group().__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        tasks, self._tasks = self._tasks, None
        try:
            if tasks:
                tasks.cancel_scope.cancel()
                await tasks.__aexit__(None, None, None)
        finally:
            await super().__aexit__(exc_type, exc, traceback)

    async def __call__(self, signature: str, /, **values: Any) -> runs.RunResult:
        """Run one task to its end; cancelling the call cancels the run.

        Args:
            signature: Typed inputs and outputs, as in ``"log, task -> cause: str"``.
            values: The inputs that the signature names, and options: any other field of
                `RunRequest`, such as ``instructions``, ``max_iterations``, ``files``, ``verify`` or
                ``max_usd``. A `Path` as an input of type ``str`` stands for the text of a host
                file, of any size.

        Returns:
            The result, also where the run ended early: see `RunResult.status`.

        Raises:
            UsageError: Signature, inputs or options are wrong; nothing was spent.
            ModelUnavailable: The model cannot be used.
            MachineError: No machine could be made.
        """
        return await self._perform(signature, values, lambda _: None)

    def stream(self, signature: str, /, **values: Any) -> RunStream:
        """Run one task and iterate over its events as they happen; arguments as for a call.

        ::

            events = rlm.stream("task -> answer", task="…")
            async for event in events:
                ...
            events.result

        Leaving the loop early and dropping the stream cancels the run; so does ``async with``.
        """
        self._opened()
        assert self._tasks
        return RunStream(self._tasks, lambda publish: self._perform(signature, values, publish))

    async def resume(
        self, run_id: str, *, step: int | None = None, **changes: Any
    ) -> runs.RunResult:
        """Resume a run of this state directory after a step, by default its last checkpoint.

        The models are those that this `RLM` names, else those of the run. Replies on record are
        used again where the same is asked.

        Args:
            run_id: `RunResult.run_id`, also of a run of the server or the command line.
            step: Resume from the checkpoint at the end of this step; 0 is the beginning.
            changes: Any field of `Changes`: ``instructions``, ``max_iterations``, limits.

        Raises:
            UsageError: It cannot be resumed from there; the message says from where it can.
        """
        fleet = self._opened()
        past = runs.recall(Journals(self._settings.state_dir, fleet.principal).of(run_id))
        return await runs.resume(
            run_id,
            step=step,
            changes=runs.Changes(**changes),
            fleet=fleet,
            model=self._model(self._settings.model or past.model),
            sub_model=self._model(
                self._settings.sub_model or self._settings.model or past.sub_model
            ),
            settings=self._settings,
        )

    async def _perform(
        self,
        signature: str,
        values: Mapping[str, Any],
        publish: Callable[[Event], None],
    ) -> runs.RunResult:
        fleet, settings = self._opened(), self._settings
        inputs, options = _split(signature, values)
        paths = {name: str(value) for name, value in inputs.items() if isinstance(value, Path)}
        everywhere = [Path("/")]  # a program may read what its user may
        with (
            runs.opened_files(options.pop("files", ()), everywhere) as files,
            runs.opened_files(paths, everywhere) as opened,
        ):
            if both := files.keys() & opened.keys():
                raise InputError(f"Given both as an input and in `files`: {', '.join(both)}.")
            request = runs.RunRequest(
                signature=signature,
                inputs={name: value for name, value in inputs.items() if name not in paths},
                files=files | opened,
                **options,
            )
            return await runs.run(
                request,
                fleet=fleet,
                model=self._model(settings.model),
                sub_model=self._model(settings.sub_model or settings.model),
                settings=settings,
                on_event=publish,
            )

    def _model(self, name: str | None) -> Model:
        if name not in self._models:
            model = self._models[name] = open_model(name)
            self._resources.push_async_callback(model.aclose)
        return self._models[name]


class RunStream:
    """The events of one run, as an asynchronous iterator; made by `RLM.stream`."""

    def __init__(self, tasks: TaskGroup, perform: Perform) -> None:
        # Unbounded, since a run waits for no reader: it holds no more than the run's own record.
        send, self._receive = anyio.create_memory_object_stream[Event](math.inf)
        self._ending = _Ending()
        self._scope = anyio.CancelScope()
        tasks.start_soon(_feed, self._scope, perform, send, self._ending)

    @property
    def result(self) -> runs.RunResult:
        """The result. Raises `RuntimeError` before every event was read, or if it was cancelled."""
        if self._ending.result is None:
            raise RuntimeError("The run has no result: read its events to the end first.")
        return self._ending.result

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """The next event. Raises what the run raises, after its last event."""
        try:
            return await self._receive.receive()
        except anyio.EndOfStream:
            if self._ending.error:
                raise self._ending.error from None
            raise StopAsyncIteration from None

    def close(self) -> None:
        """Cancel the run if it is under way; its machines are deleted in the background."""
        self._receive.close()
        if not self._ending.reached:  # there may be no event loop any more
            self._scope.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # A loop that is left with `break` drops the stream: nobody would see what is paid for.
        self.close()


@dataclass(slots=True)
class _Ending:
    """How a streamed run ended: apart from the stream, which the run must not keep alive."""

    reached: bool = False
    result: runs.RunResult | None = None
    error: Exception | None = None


async def _feed(
    scope: anyio.CancelScope,
    perform: Perform,
    send: MemoryObjectSendStream[Event],
    ending: _Ending,
) -> None:
    """Perform a run, sending its events."""

    def publish(event: Event) -> None:
        with suppress(anyio.BrokenResourceError):  # nobody reads any more: it is being cancelled
            send.send_nowait(event)

    with scope, send:
        try:
            ending.result = await perform(publish)
        except Exception as error:  # noqa: BLE001 - raised to the reader, after the last event
            ending.error = error
        finally:
            ending.reached = True


class Machines(_Session):
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
        self._workbench = runs.Workbench(self._opened(), self._settings)
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
        return await self._opened().list()

    async def commits(self) -> Sequence[Commit]:
        """Every commit of the backend, oldest first, without the checkpoints of runs."""
        return await self._opened().snapshots()

    async def delete_commit(self, commit_id: str) -> None:
        """Delete a commit; machines made from it live on. One that is gone is no error."""
        await self._opened().delete_commit(commit_id)

    @property
    def _bench(self) -> runs.Workbench:
        self._opened()
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
        data = await self._bench.read_file(
            posixpath.join(WORKSPACE, path), machine_id=self.id, offset=offset, length=limit
        )
        if length is None and len(data) > READ_BYTES:
            raise InputError(
                f"{path} is larger than {READ_BYTES >> 20} MiB; read it in pieces, with `offset` "
                "and `length`."
            )
        return data

    async def write(self, path: str, data: bytes | str) -> int:
        """Write a file, text as UTF-8, with missing parent directories; return its size."""
        return await self._bench.write_file(
            posixpath.join(WORKSPACE, path),
            data.encode() if isinstance(data, str) else data,
            machine_id=self.id,
        )

    async def snapshot(self) -> Commit:
        """Commit the machine; it keeps running. `Machines.restore` takes the commit's id."""
        return (await self._bench.snapshot(self.id)).commit

    async def branch(self, count: int = 1) -> Sequence[VM]:
        """Make `count` running copies of this machine, all from the same instant."""
        made = await self._bench.branch(count, self.id)
        return [VM(info.id, self._bench, self._settings) for info in made.machines]

    async def delete(self) -> None:
        """Delete the machine. Commits made from it, and machines branched from it, live on."""
        await self._bench.delete(self.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandOutput:
    """How a command of `VM.exec` ended, and what it wrote (at most 10 MiB of each stream)."""

    stdout: str
    stderr: str
    exit_code: int | None
    """128 + N after signal N, as in a shell; None when it was killed at its time limit."""
    seconds: float


def _split(signature: str, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The inputs that the signature names, and the options of a run. Raises `UsageError`."""
    named = {field.name for field in rlm.Signature.parse(signature).inputs}
    inputs = {name: value for name, value in values.items() if name in named}
    options = {name: value for name, value in values.items() if name not in named}
    if unknown := options.keys() - OPTIONS:
        raise InputError(
            f"{', '.join(sorted(unknown))}: neither an input of {signature!r} nor an option of a "
            f"run. The options are {', '.join(sorted(OPTIONS))}."
        )
    return inputs, options
