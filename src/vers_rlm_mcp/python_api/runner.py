"""`RLM`: tasks that a model works on."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import anyio

from vers_rlm_mcp import rlm, runs
from vers_rlm_mcp.errors import InputError
from vers_rlm_mcp.models import Model, ModelOptions, open_model
from vers_rlm_mcp.store import Journals

from .run_stream import RunStream
from .session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from anyio.abc import TaskGroup

    from vers_rlm_mcp.events import Event

    from .run_stream import Perform

OPTIONS = {field.name for field in fields(runs.RunRequest)} - {"signature", "inputs"}
"""What a call of `RLM` takes besides inputs."""


class RLM(Session):
    """Runs tasks: a model writes Python in a machine until it hands in typed outputs.

    ::

        async with RLM(model="anthropic:claude-opus-5-5") as rlm:
            result = await rlm("log, task -> cause: str", log=Path("access.log"), task="Why?")
            result.outputs["cause"]

    An instance may perform many runs at once, each on its own machines. Leaving the
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
        self._models: dict[tuple[str | None, bool], Model] = {}
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

    def __call__(self, signature: str, /, **values: Any) -> RunStream:
        """Start one task: await it for its result, or iterate over its events.

        ::

            result = await rlm("task -> answer", task="…")
            async for event in (run := rlm("task -> answer", task="…")):
                ...
            run.result

        Cancelling the wait, leaving the loop early, or dropping the stream cancels the run.

        Args:
            signature: Typed inputs and outputs, as in ``"log, task -> cause: str"``.
            values: The inputs that the signature names, and options: any other field of
                `RunRequest`, such as ``instructions``, ``max_iterations``, ``files``, ``verify`` or
                ``max_usd``. A `Path` as an input of type ``str`` stands for the text of a host
                file, of any size.

        Returns:
            The run. Its result exists also where it ended early: see `RunResult.status`.

        Raises:
            UsageError: Signature, inputs or options are wrong; nothing was spent. This and the
                following are raised when the stream is read or awaited.
            ModelUnavailable: The model cannot be used.
            MachineError: No machine could be made.
        """
        return self._start(lambda publish: self._perform(signature, values, publish))

    stream = __call__

    def resume(self, run_id: str, *, step: int | None = None, **changes: Any) -> RunStream:
        """Resume a run of this state directory after a step, by default its last checkpoint.

        The models of this `RLM` are used if it names any, else the run's. Recorded replies are
        used again if a request is the same.

        Args:
            run_id: `RunResult.run_id`, also of a run of the server or the command line.
            step: Resume from the checkpoint at the end of this step; 0 is the beginning.
            changes: Any field of `Changes`: ``instructions``, ``max_iterations``, limits.

        Raises:
            UsageError: It cannot be resumed from there; the message says from where it can.
        """
        fleet = self._require_open()
        model, sub_model = self._models_of(run_id)
        resume = partial(
            runs.resume,
            run_id,
            step=step,
            changes=runs.Changes(**changes),
            fleet=fleet,
            model=model,
            sub_model=sub_model,
            settings=self._settings,
        )
        return self._start(lambda publish: resume(on_event=publish))

    async def replay(
        self,
        run_id: str,
        *,
        live_from: int | None = None,
        on_event: Callable[[Event], None] = lambda _: None,
        **changes: Any,
    ) -> runs.Replay:
        """Repeat a run with its recorded replies, and compare what the machine answers.

        Args:
            run_id: The run to repeat; it is not changed.
            live_from: Ask models, of this `RLM` or the run's own, after this step. By default,
                none is asked.
            on_event: Receives the events as they happen.
            changes: As for `resume`.

        Raises:
            UsageError: The run cannot be replayed from its record.
        """
        return await runs.replay(
            run_id,
            live_from=live_from,
            changes=runs.Changes(**changes),
            fleet=self._require_open(),
            models=None if live_from is None else self._models_of(run_id),
            settings=self._settings,
            on_event=on_event,
        )

    def files(self, run_id: str) -> Mapping[str, Path]:
        """The files that a run handed over: their names, and where they are kept.

        Copy them before the run is deleted. `RunResult.files` tells more of each.

        Raises:
            UsageError: There is no such run.
        """
        journal = Journals(self._settings.state_dir, self._require_open().principal).of(run_id)
        result = runs.load_record(journal).result
        return {each.name: journal.file(each.name) for each in (result.files if result else ())}

    def _start(self, perform: Perform) -> RunStream:
        self._require_open()
        assert self._tasks
        return RunStream(self._tasks, perform)

    def _models_of(self, run_id: str) -> tuple[Model, Model]:
        """The models to resume a run with: those of this `RLM` or, by default, the run's own."""
        own, principal = self._settings, self._require_open().principal
        past = runs.load_past(Journals(own.state_dir, principal).of(run_id))
        return (
            self._model(own.model or past.model),
            self._model(own.sub_model or own.model or past.sub_model, is_sub=True),
        )

    async def _perform(
        self,
        signature: str,
        values: Mapping[str, Any],
        publish: Callable[[Event], None],
    ) -> runs.RunResult:
        fleet, settings = self._require_open(), self._settings
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
                files={**files, **opened},
                notes=files.notes,
                **options,
            )
            beginning = runs.check_request(request)  # before a missing key hides what is wrong
            return await runs.run(
                request,
                beginning=beginning,
                fleet=fleet,
                model=self._model(settings.model),
                sub_model=self._model(settings.sub_model or settings.model, is_sub=True),
                settings=settings,
                on_event=publish,
            )

    def _model(self, name: str | None, *, is_sub: bool = False) -> Model:
        if (name, is_sub) not in self._models:
            of_role = ModelOptions.of_sub if is_sub else ModelOptions.of_root
            model = self._models[name, is_sub] = open_model(name, options=of_role(self._settings))
            self._resources.push_async_callback(model.aclose)
        return self._models[name, is_sub]


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
