"""`vers-rlm-mcp doctor`: checks machines and models, and says how to fix what does not work."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import anyio
from anyio import to_thread
from rich.console import Console
from rich.text import Text

from vers_rlm_mcp import runs
from vers_rlm_mcp.errors import BackendUnavailable, MachineError, VersRlmError
from vers_rlm_mcp.machines import choose_backend, describe_strays, open_fleet
from vers_rlm_mcp.models import SAMPLING, open_model
from vers_rlm_mcp.settings import unknown_variables

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import SimpleNamespace

    from vers_rlm_mcp.machines import Choice, Machine
    from vers_rlm_mcp.settings import Settings

TRIAL_SECONDS = 60.0
"""Time limit for all checks of a machine; a local one takes less than a second."""

COMMAND_BYTES = 1000

PROGRAMS = """python3 - <<'END'
from importlib.util import find_spec
from platform import python_version
usual = ["pip", "numpy", "pandas", "polars", "matplotlib", "requests", "openpyxl", "pyarrow"]
there = [name for name in usual if find_spec(name)]
lacking = [name for name in usual if name not in there]
print("Python", python_version(), "with", ", ".join(there) or "no packages", end="")
print("; without " + ", ".join(lacking) if lacking else "")
END
"""
"""A command that prints which Python a machine has, and which of the usual packages."""

T = TypeVar("T")


@dataclass
class Report:
    """Prints findings as they are made, and counts failures."""

    console: Console
    failures: int = 0

    def success(self, what: str) -> None:
        """Report something that works."""
        self.console.print(Text("✓ ", style="green") + Text(what))

    def failure(self, what: str, error: object) -> None:
        """Report something that does not work; `error` says what to do about it."""
        self.failures += 1
        self.console.print(Text("✗ ", style="red") + Text(f"{what}: {error}"))

    def remark(self, what: str) -> None:
        """Report a fact that is neither a success nor a failure."""
        self.console.print(Text(f"  {what}"))

    async def attempt(self, what: str, act: Callable[[], Awaitable[T]]) -> T:
        """Perform a check and report how long it took. A failure is reported and raised."""
        started = time.monotonic()
        try:
            result = await act()
        except VersRlmError as error:
            self.failure(what, error)
            raise
        self.success(f"{what} ({(time.monotonic() - started) * 1000:.0f} ms)")
        return result


async def diagnose(settings: Settings, _: SimpleNamespace) -> int:
    """Check settings, machines and models; return 0 if nothing that is configured fails."""
    report = Report(Console(soft_wrap=True))
    _check_settings(report, settings)
    try:
        with anyio.fail_after(TRIAL_SECONDS):
            await _examine(report, settings)
    except TimeoutError:
        report.failure("Trying a machine", f"cancelled after {TRIAL_SECONDS:g} s.")
    except VersRlmError as error:
        if not report.failures:
            report.failure("Opening the backend", error)
    has_model = _check_models(report, settings)
    report.remark(_conclude(report.failures, has_model=has_model))
    return 1 if report.failures else 0


def _check_settings(report: Report, settings: Settings) -> None:
    """Report what of the settings is wrong before anything is tried."""
    report.remark(f"The state directory is {settings.state_dir}.")
    for name, suggestion in unknown_variables().items():
        report.failure(name, f"is not a setting{suggestion}; it is ignored. Correct or unset it.")
    for directory in settings.allow_dir:
        if directory.is_dir():
            report.remark(f"Files may be taken from {directory}.")
        else:
            report.failure(f"The allowed directory {directory}", "is not a directory. Create it.")
    if not settings.allow_dir:
        report.remark("No host files may be taken: set VERS_RLM_ALLOW_DIR to allow a directory.")


def _conclude(failures: int, *, has_model: bool) -> str:
    if failures:
        return f"{failures} check{'s' if failures > 1 else ''} failed: see ✗ above for what to do."
    if not has_model:
        return "Machines work. vers_rlm needs a model; the other tools do not."
    return "Everything works."


async def _examine(report: Report, settings: Settings) -> None:
    choice = await to_thread.run_sync(
        partial(choose_backend, settings, forget=True)
    )  # it may boot a machine
    report.remark(f"Machines come from {choice.name}, since {choice.reason}.")
    if choice.factory.costs_money:
        await _check_service(report, settings, choice)
        return
    try:
        await _try_machine(report, settings)
    except BackendUnavailable:
        if not report.failures:
            raise
        for finding in await choice.factory.probe(settings):
            if not finding.ok:
                report.remark(f"{finding.name}: {finding.text}")


async def _check_service(report: Report, settings: Settings, choice: Choice) -> None:
    """Check what the service reports free of charge: creating a machine costs money."""
    for finding in await choice.factory.probe(settings):
        if finding.ok:
            report.success(f"{finding.name}: {finding.text}")
        else:
            report.failure(finding.name, finding.text)
    if not report.failures:
        async with open_fleet(settings) as fleet:
            if strays := await fleet.strays():
                report.remark(describe_strays(strays))
    report.remark(
        "No machine was created, since that costs money: "
        f"`vers-rlm-mcp demo --backend {choice.name}` creates some and deletes them."
    )


async def _try_machine(report: Report, settings: Settings) -> None:
    async with open_fleet(settings) as fleet:
        bench = runs.Workbench(fleet, settings)
        await report.attempt("A machine starts", bench.create)
        machine = await bench.machine()
        _report_capabilities(report, machine)
        programs = await bench.exec(PROGRAMS, limit=COMMAND_BYTES)
        report.remark(f"It has {programs.stdout.text.strip() or 'no Python'}.")

        async def command() -> None:
            result = await bench.exec("uname -s", limit=COMMAND_BYTES)
            _require(result.stdout.text.strip() == "Linux", "`uname -s`", result.stderr.text)

        async def cell() -> None:
            result, _ = await runs.run_cell(bench, "answer = 6 * 7", timeout=10)
            _require(result.status == "ok", "a cell", result.error or result.output)

        async def time_travel() -> None:
            commit = (await bench.snapshot()).commit
            await bench.restore(commit.id)
            result, _ = await runs.run_cell(bench, "answer", timeout=10)
            _require(result.output.strip() == "42", "a restored variable", result.error)
            await fleet.delete_commit(commit.id)

        await report.attempt("Commands run in it", command)
        await report.attempt("Python runs in it", cell)
        await report.attempt("A snapshot is taken and restored, variables included", time_travel)
        await bench.aclose()


def _require(condition: bool, what: str, seen: object) -> None:
    if not condition:
        raise MachineError(f"{what} failed in the machine: {seen}")


def _report_capabilities(report: Report, machine: Machine) -> None:
    can = machine.capabilities
    report.remark(
        f"Backend {machine.backend}, isolation: {can.isolation}, fidelity: {can.fidelity}, "
        f"network: {'on' if can.network else 'off'}, "
        f"system directories: {'writable' if can.root else 'read-only'}."
    )
    for name, mechanism in can.limits.items():
        report.remark(f"Limit on {name}: {mechanism}.")
    for note in can.notes:
        report.remark(note)


def _check_models(report: Report, settings: Settings) -> bool:
    """Report which models would be used, and return whether there is one.

    Nothing is sent to a provider: that costs money.
    """
    has_model = _check_model(report, "model", settings.model)
    if settings.sub_model:
        _check_model(report, "sub-model", settings.sub_model)
    return has_model


def _check_model(report: Report, role: str, name: str | None) -> bool:
    if name == SAMPLING:
        report.remark(f"The {role} is the MCP client's own, if it offers sampling.")
        return True
    try:
        model = open_model(name)
    except VersRlmError as error:
        if name:
            report.failure(f"The {role} {name}", error)
        else:
            report.remark(str(error))
            report.remark("An MCP client that offers sampling can provide its own model.")
        return False
    report.success(f"The {role} is {model.name} (its key was not checked)")
    return True
