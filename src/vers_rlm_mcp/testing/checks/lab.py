"""What checks share: machines that are removed afterwards, and expectations."""

from __future__ import annotations

import tracemalloc
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self, TypeVar
from unittest import SkipTest

import anyio

from vers_rlm_mcp.machines import CommandResult, read_bytes, run_command

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vers_rlm_mcp.machines import Backend, Capabilities, Commit, Machine, MachineSpec

OpenBackend = Callable[[], "Backend"]
"""Returns a new backend object over the same machines each time it is called."""

Needs = Callable[["Capabilities"], "str | None"]
"""Why a check does not apply to a backend; None if it does."""

COMMAND_SECONDS: Final = 60.0
"""How long a command of a check may take. Most take milliseconds, over a network seconds."""

END_SECONDS: Final = 5.0
"""How long a killed process may remain visible. Over a network one look takes up to 3 s."""

CLEAN_SECONDS: Final = 60.0
"""How long removing what a check made may take on a slow remote service."""

MEMORY_LIMIT: Final = 24 * 1024 * 1024
"""Bytes of memory that streaming may take at its peak: the buffers of both ends."""

MIB: Final = 1024 * 1024

Error = TypeVar("Error", bound=Exception)


class CheckFailed(AssertionError):
    """A backend breaks a promise. The message says how."""


class Lab:
    """Makes machines for one check and removes them, with their commits, afterwards."""

    def __init__(self, open_backend: OpenBackend) -> None:
        self._open = open_backend
        self.backend = open_backend()
        self._machines: list[str] = []
        self._commits: list[str] = []

    async def create(
        self, spec: MachineSpec | None = None, *, labels: Mapping[str, str] | None = None
    ) -> Machine:
        """A fresh machine."""
        machine = await self.backend.create(spec, labels=labels)
        self._machines.append(machine.id)
        return machine

    async def restore(self, commit: Commit) -> Machine:
        """A new machine from a commit."""
        machine = await self.backend.restore(commit.id)
        self._machines.append(machine.id)
        return machine

    async def branch(
        self, machine: Machine, count: int = 1, *, labels: Mapping[str, str] | None = None
    ) -> Sequence[Machine]:
        """Copies of a machine."""
        branches = await machine.branch(count, labels=labels)
        self._machines += [branch.id for branch in branches]
        return branches

    async def snapshot(self, machine: Machine, intent: str | None = None) -> Commit:
        """A commit of a machine."""
        commit = await machine.snapshot(intent=intent)
        self._commits.append(commit.id)
        return commit

    async def reopen(self) -> Backend:
        """Close the backend and open another object over the same machines, as a restart does."""
        await self.backend.aclose()
        self.backend = self._open()
        return self.backend

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        with anyio.move_on_after(CLEAN_SECONDS, shield=True) as scope:
            for machine_id in reversed(self._machines):
                await self.backend.delete(machine_id)
            for commit_id in reversed(self._commits):
                await self.backend.delete_commit(commit_id)
            await self.backend.aclose()
        if scope.cancelled_caught and kind is None:
            raise CheckFailed(f"deleting took longer than {CLEAN_SECONDS:.0f} s")


@dataclass(frozen=True, slots=True)
class Check:
    """A promise of the contract, and a function that tries whether a backend keeps it."""

    run: Callable[[Lab], Awaitable[None]]
    needs: Needs | None = None

    @property
    def name(self) -> str:
        """The promise as an identifier."""
        return getattr(self.run, "__name__", "")

    @property
    def promise(self) -> str:
        """The promise as a sentence."""
        return (self.run.__doc__ or "").partition("\n")[0]

    def inapplicable(self, capabilities: Capabilities) -> str | None:
        """Why the check does not apply to a backend; None if it does."""
        return self.needs and self.needs(capabilities)

    async def __call__(self, open_backend: OpenBackend) -> None:
        """Run the check, and remove what it made, after an error too.

        Raises:
            unittest.SkipTest: The check does not apply to this backend. pytest reports it so.
            CheckFailed: The promise is not kept.
            VersRlmError: The backend could not do something that should have worked.
        """
        async with Lab(open_backend) as lab:
            if reason := self.inapplicable(lab.backend.capabilities):
                raise SkipTest(reason)
            await self.run(lab)


def check(run: Callable[[Lab], Awaitable[None]]) -> Check:
    """Decorate a check that applies to every backend."""
    return Check(run)


def check_if(needs: Needs) -> Callable[[Callable[[Lab], Awaitable[None]]], Check]:
    """Decorate a check that applies to some backends."""
    return lambda run: Check(run, needs)


def isolation(capabilities: Capabilities) -> str | None:
    """Needs programs that see the machine and not the host."""
    if capabilities.isolation == "none":
        return "its programs see the files and processes of the host"
    return None


def memory(capabilities: Capabilities) -> str | None:
    """Needs copies that carry memory and processes."""
    return None if capabilities.fidelity == "memory" else "its copies carry only the disk"


def limited(what: str) -> Needs:
    """Needs an enforced limit of the machine."""

    def needs(capabilities: Capabilities) -> str | None:
        return None if what in capabilities.limits else f"it does not limit {what}"

    return needs


def expect(truth: bool, otherwise: str) -> None:
    """Fail the check with this message unless `truth` holds."""
    if not truth:
        raise CheckFailed(otherwise)


def expect_equal(seen: object, wanted: object, what: str) -> None:
    """Fail the check unless both are equal."""
    expect(seen == wanted, f"{what}: wanted {_short(wanted)}, got {_short(seen)}")


async def expect_error(kind: type[Error], attempt: Awaitable[object], what: str) -> Error:
    """Fail the check unless the attempt raises this kind of error in time."""
    try:
        with anyio.fail_after(COMMAND_SECONDS):
            await attempt
    except kind as error:
        return error
    except TimeoutError:
        raise CheckFailed(f"{what} blocks; wanted {kind.__name__}") from None
    raise CheckFailed(f"{what} is accepted; wanted {kind.__name__}")


async def run(machine: Machine, argv: Sequence[str], *, stdin: bytes = b"") -> CommandResult:
    """Run a program that must end in time."""
    result = await run_command(machine, argv, stdin=stdin, timeout=COMMAND_SECONDS)
    expect(result.status is not None, f"{argv[0]!r} did not end within {COMMAND_SECONDS:.0f} s")
    return result


async def sh(machine: Machine, script: str, *arguments: str) -> str:
    """Run a shell script that must succeed, and return its output."""
    result = await run(machine, ["sh", "-ec", script, "sh", *arguments])
    ok = result.status is not None and result.status.ok
    expect(ok, f"{_short(script)} failed ({result.status}): {result.stderr.text}")
    return result.stdout.text


async def content(machine: Machine, path: str) -> bytes:
    """Read a small file."""
    return await read_bytes(machine, path, length=MIB)


async def is_running(machine: Machine, pid: int) -> bool:
    """Whether a process of the machine exists and any of its threads has not ended."""
    result = await run(machine, ["cat", f"/proc/{pid}/stat"])
    fields = result.stdout.text.rpartition(")")[2].split()
    return bool(fields) and (fields[0] not in {"Z", "X"} or int(fields[17]) > 1)


async def expect_end(machine: Machine, pids: Sequence[int], what: str) -> None:
    """Fail the check unless all these processes end soon."""
    with anyio.move_on_after(END_SECONDS):
        for pid in pids:
            while await is_running(machine, pid):  # noqa: ASYNC110 - the machine gives no event
                await anyio.sleep(0.01)
        return
    raise CheckFailed(f"{what}: a process of {list(pids)} still runs")


class MemoryMeter:
    """Fails the check if this process's Python memory grew much within the ``with``."""

    def __enter__(self) -> Self:
        self._was_tracing = tracemalloc.is_tracing()
        tracemalloc.start()
        tracemalloc.reset_peak()
        self._before = tracemalloc.get_traced_memory()[0]
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        grown = tracemalloc.get_traced_memory()[1] - self._before
        if not self._was_tracing:
            tracemalloc.stop()
        if kind is None:
            expect(grown < MEMORY_LIMIT, f"streaming took {grown / MIB:.0f} MiB of memory")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}… ({len(text):,} characters)"
