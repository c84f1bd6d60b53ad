"""Runs our guest programs in machines and reads what they send, which is not trusted."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio
from anyio.streams.buffered import BufferedByteReceiveStream

from vers_rlm_mcp.errors import MachineError, PathRefused, VersRlmError

from ..code import guest_code, loader
from ..complaint import Complaint

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from anyio.abc import TaskGroup

    from ..base import Machine, Process

MAX_LINE: Final = 1024 * 1024
"""Bytes of a line, as the guest's `tree` has it."""

MAX_RECEIVED: Final = 32 * 1024 * 1024
"""Bytes of all lines that one program sends to the host: 100,000 paths of the usual length."""

MAX_STDERR: Final = 1024 * 1024
"""Bytes of standard error that are read: a program that writes more waits until time is up."""

END_SECONDS: Final = 5.0
"""From a program's last line until it has ended."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Program:
    """One of the guest's programs, for one machine."""

    machine: Machine
    module: str
    command: str
    options: Mapping[str, object]

    @property
    def what(self) -> str:
        """The name of the program in errors."""
        return f"{self.module!r} ({self.command}) in machine {self.machine.id}"

    async def start(self) -> Process:
        """Start it. Raises `MachineError` if the machine has no Python."""
        code = guest_code("differences")
        argv = ["python3", *loader("differences.guest.program", code), self.module, self.command]
        try:
            # Not in the machine's own directory, which a snapshot would find in use.
            process = await self.machine.spawn([*argv, json.dumps(self.options)], cwd="/")
        except PathRefused as error:
            raise MachineError(
                f"Files of machine {self.machine.id} cannot be looked at, since python3 cannot be "
                f"run there: {error}"
            ) from error
        try:
            with suppress(anyio.BrokenResourceError):  # it has ended, and says why
                await process.stdin.send(code)
        except BaseException:
            await process.aclose()
            raise
        return process


class Guest:
    """A program at work. Nothing that it sends is trusted, and all of it is bounded."""

    def __init__(self, process: Process, what: str) -> None:
        self._process = process
        self._what = what
        self._lines = BufferedByteReceiveStream(process.stdout)
        self._received = 0
        self._complaint = Complaint()

    async def receive(self) -> Any:
        """Receive the next line: a JSON value of a bounded size. Raises `MachineError`."""
        try:
            line = await self._lines.receive_until(b"\n", MAX_LINE)
            self._received += len(line)
            if self._received <= MAX_RECEIVED:
                return json.loads(line)
        except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError):
            raise await self.failure() from None
        except (anyio.DelimiterNotFound, ValueError, RecursionError):
            pass
        raise self.nonsense()

    async def send(self, *lines: object) -> None:
        """Send lines. If the program has ended, reading its answer will raise."""
        data = b"".join(json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in lines)
        with suppress(anyio.BrokenResourceError):
            await self._process.stdin.send(data)

    async def feed(self, other: Guest) -> None:
        """Forward all output to another program, then close that one's input."""
        await self.forward(other)
        await other.close()

    async def forward(self, other: Guest) -> None:
        """Forward all output to another program, bounded by time only."""
        with suppress(anyio.BrokenResourceError):
            async for chunk in self._process.stdout:
                await other._process.stdin.send(chunk)

    async def close(self) -> None:
        """Close its input."""
        await self._process.stdin.aclose()

    async def has_succeeded(self) -> bool:
        """Whether it succeeded, once it has sent everything and ended."""
        with anyio.move_on_after(END_SECONDS):
            return (await self._process.wait()).ok
        return False

    async def failure(self) -> MachineError:
        """The error for a program that ended early."""
        with anyio.move_on_after(END_SECONDS):
            status = await self._process.wait()
            said = self._complaint.text.rpartition("\n")[2]
            how = "" if status.signal is None else f" (killed by signal {status.signal})"
            if said or how:
                return MachineError(f"{self._what} failed: {said or 'it said nothing'}{how}.")
        return self.nonsense()

    def nonsense(self) -> MachineError:
        """The error for output that our program would not send."""
        return MachineError(
            f"{self._what} failed: what it tells makes no sense. Something else may have taken the "
            "place of python3 there; look what `python3 --version` says."
        )

    async def keep_complaint(self) -> None:
        """Read standard error and keep its end."""
        await self._complaint.read(self._process.stderr, MAX_STDERR)


async def work_with(
    programs: Sequence[Program],
    act: Callable[[Sequence[Guest], TaskGroup], Awaitable[Result]],
    *,
    seconds: float,
) -> Result:
    """Start programs, act with them, and stop them all. Raises what `act` raises.

    Raises `MachineError` when it takes longer than `seconds`.
    """
    outcome: list[Result] = []
    failure: VersRlmError | None = None
    with anyio.move_on_after(seconds) as limit:
        async with AsyncExitStack() as stack:
            guests = [
                Guest(await stack.enter_async_context(await program.start()), program.what)
                for program in programs
            ]
            async with anyio.create_task_group() as tasks:
                for guest in guests:
                    tasks.start_soon(guest.keep_complaint)
                try:
                    outcome.append(await act(guests, tasks))
                except VersRlmError as error:  # Raised outside, or the group would wrap it.
                    failure = error
                tasks.cancel_scope.cancel()
    if limit.cancelled_caught:
        raise MachineError(
            f"{programs[-1].what} was stopped after {seconds:g} s. There may be more in the "
            "machine than can be looked at in that time: name the directories that matter."
        )
    if failure:
        raise failure
    return outcome[0]
