"""The request for a run, its limits, and its result."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import JsonValue

from vers_rlm_mcp import rlm
from vers_rlm_mcp.errors import InputError

from .budget import Limits
from .events import OutputFile, RunFinished

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vers_rlm_mcp.machines import MachineSpec
    from vers_rlm_mcp.models import Model
    from vers_rlm_mcp.settings import Settings
    from vers_rlm_mcp.values import Usage

N = TypeVar("N", int, float)

OPTIONS = (
    "machine_id",
    "keep_machine",
    "output_files",
    "max_depth",
    "max_seconds",
    "max_tokens",
    "max_usd",
)


@dataclass(frozen=True, slots=True)
class RunRequest:
    """The request for a run. The tool `vers_rlm` documents each part."""

    signature: str
    inputs: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    instructions: str | None = None
    max_iterations: int = rlm.MAX_ITERATIONS
    max_llm_calls: int = rlm.MAX_SUB_CALLS
    machine_id: str | None = None
    """Work on this machine; it is not deleted. None makes one."""
    spec: MachineSpec | None = None
    keep_machine: bool = False
    """Keep the machine that is current at the end."""
    files: Mapping[str, Path] = field(default_factory=dict[str, Path])
    """Names in the machine to host paths that the user may read. A file whose name is that of a
    text input of the signature becomes that input's value."""
    notes: Sequence[str] = ()
    """Sentences for the user, such as `OpenedFiles.notes`: they become warnings of the result."""
    verify: str | None = None
    """A shell command that must accept the outputs: it reads them as JSON in a copy of the machine
    that is current, and exits with 0."""
    output_files: Sequence[str] = ()
    """Patterns of files in the machine to hand over, besides the outputs of type ``file`` and what
    is in ``/workspace/out``. Relative to the workspace; ``**`` stands for any directories."""
    max_depth: int = 1
    """How deep conversations may start others; 0 allows no branches, and plain sub-calls only."""
    max_seconds: float | None = None
    max_tokens: int | None = None
    max_usd: float | None = None

    def __post_init__(self) -> None:
        """Raise `InputError` for limits that make no sense."""
        if self.max_iterations < 1:
            raise InputError(f"A run has at least 1 iteration, not {self.max_iterations}.")
        if self.max_llm_calls < 0:
            raise InputError(f"{self.max_llm_calls} sub-calls cannot be allowed; 0 allows none.")
        if self.max_depth < 0:
            raise InputError(f"A depth of {self.max_depth} makes no sense; 0 allows no branches.")
        amounts = {"seconds": self.max_seconds, "tokens": self.max_tokens, "USD": self.max_usd}
        for unit, amount in amounts.items():
            if amount is not None and not amount > 0:
                raise InputError(
                    f"A run needs more than {amount} {unit}; leave the limit out for none."
                )

    def options(self) -> dict[str, JsonValue]:
        """The part of the request that the task does not hold, for `RunRequest.of`."""
        options: dict[str, JsonValue] = {name: getattr(self, name) for name in OPTIONS}
        options["output_files"] = list(self.output_files)
        return options

    @classmethod
    def of(cls, task: rlm.Task, options: Mapping[str, Any]) -> RunRequest:
        """The request that led to this task and these options."""
        return cls(
            str(task.signature),
            instructions=task.instructions,
            max_iterations=task.max_iterations,
            max_llm_calls=task.max_sub_calls,
            verify=task.verify,
            **{name: options[name] for name in OPTIONS if name in options},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """The result of a run."""

    run_id: str
    status: Literal["finished", "extracted", "partial", "failed", "cancelled"]
    """The last two occur only in recorded runs."""
    outputs: Mapping[str, JsonValue]
    steps: tuple[rlm.Step, ...]
    reason: str
    """A whole sentence: why it ended."""
    final_reasoning: str
    machine_id: str
    kept: bool
    backend: str
    isolation: str
    fidelity: str
    usage: Usage
    """The usage of the whole run, sub-calls included."""
    sub_calls: int
    seconds: float
    verified: str | None = None
    """The command that accepted the outputs."""
    warnings: tuple[str, ...] = ()
    files: tuple[OutputFile, ...] = ()
    """The files that it handed over, which outlive its machines."""

    def event(self) -> RunFinished:
        """The end of the run, for its journal."""
        values: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(self)}
        values |= {"steps": len(self.steps), "outputs": dict(self.outputs)}
        return RunFinished(**values)

    @classmethod
    def of(cls, ended: RunFinished, steps: Sequence[rlm.Step]) -> RunResult:
        """The result of a recorded run."""
        values: dict[str, Any] = {each.name: getattr(ended, each.name) for each in fields(ended)}
        values |= {"steps": tuple(steps), "machine_id": ended.machine_id or ""}
        return cls(**values)


def check_prices(limits: Limits, models: Sequence[Model]) -> None:
    """Raise `InputError` if a limit in USD cannot be enforced."""
    unknown = sorted({model.name for model in models if model.price is None})
    if limits.usd is not None and unknown:
        raise InputError(
            f"A limit of {limits.usd:g} USD cannot be held, since the price of "
            f"{' and '.join(unknown)} is not known. Limit the tokens instead, or choose a model "
            "with a known price."
        )


def limits(request: RunRequest, settings: Settings) -> Limits:
    """The limits of a run: as requested, but within the limits of the settings.

    Raises `InputError` if there would be no machine for its check.
    """
    machines = settings.max_machines - bool(request.verify)  # which works in a copy
    if machines < 1:
        raise InputError(
            "A run with a check needs 2 machines at once: raise VERS_RLM_MAX_MACHINES, which is "
            f"{settings.max_machines}, or run it without `verify`."
        )
    return Limits(
        iterations=request.max_iterations,
        sub_calls=request.max_llm_calls,
        tokens=_lower(request.max_tokens, settings.max_tokens),
        usd=_lower(request.max_usd, settings.max_usd),
        seconds=_lower(request.max_seconds, settings.max_seconds),
        machines=machines,
    )


def _lower(asked: N | None, allowed: N | None) -> N | None:
    return asked if allowed is None else allowed if asked is None else min(asked, allowed)
