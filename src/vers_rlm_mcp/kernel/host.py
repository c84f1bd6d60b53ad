"""The kernel of a machine, as the host sees it."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import asdict
from math import inf
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import anyio

from vers_rlm_mcp.errors import (
    InputError,
    KernelBusy,
    KernelError,
    KernelGone,
    VersRlmError,
    WireError,
)
from vers_rlm_mcp.machines import expect_answer
from vers_rlm_mcp.values import CellResult

from .attachment import Attachment, Lost, Mode, start_program, upload
from .cell_run import CellRun, Output
from .guest.frames import PROTOCOL
from .guest_frames import (
    Done,
    Refused,
    parse_answer,
    parse_carried,
    parse_ready,
    parse_variables,
)
from .wire import MAX_PAYLOAD, dump

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from pydantic import JsonValue

    from vers_rlm_mcp.machines import Machine
    from vers_rlm_mcp.values import ReplFunction

    from .base import Carried, Handler, Variable

OUTPUT_LIMIT = 1024 * 1024
"""Bytes of a cell's output that are kept: a hundred times what a model is shown."""

ATTACH_SECONDS = 10.0
"""A kernel starts in a twentieth of a second; this is for a machine under heavy load."""

ADMIT_SECONDS = 3.0
"""How long a running kernel may take to admit a host, which interrupts what runs in it. It counts
from when the machine is reached: a kernel must not be killed because the network is slow."""

REACH_SECONDS = 90.0
"""To do all that and reach the machine again, which a remote backend tries for a minute."""

RETURN_SECONDS = 8.0
"""The same for a cell whose own time is up already. It is mostly the kernel's start."""

INTERRUPT_SECONDS = 1.0
"""From the interrupt until the kernel is killed: time for the cell's own ``finally`` blocks."""

CANCEL_SECONDS = 0.6
"""The same for a call that is cancelled."""

KILL_SECONDS = 0.4
"""To kill the kernel then, so that cancelling takes a second in all."""

DETACH_SECONDS = 1.0
"""To close the program that stands for this host in the machine, which only waits."""

LOAD_SECONDS = 300.0
"""Reading a JSON file of a gigabyte takes about a minute."""

SAVE_SECONDS = 120.0
"""The guest gives up on variables well before."""

LIST_SECONDS = 10.0
"""Previews call what classes define as their representation, which may hang."""

Answer = TypeVar("Answer")


class Kernel:
    """A Python process in a machine that runs cells and keeps their variables.

    The process outlives this object and its connection; a lost connection is restored at the next
    call. After a `WireError` this object is closed. Use `connect` to make one.
    """

    def __init__(
        self,
        machine: Machine,
        program: str,
        *,
        home_id: str,
        functions: Sequence[ReplFunction],
        save_on_copy: bool,
        output_limit: int,
        memory: int | None,
    ) -> None:
        self.carried: Carried | None = None
        """What `restore_variables` brought back, and what not."""
        self.closed = False
        """Whether this object can no longer be used."""
        self._machine = machine
        self._program = program
        self._current_id = home_id
        self._output_limit = output_limit
        self._hello: dict[str, Any] = {
            "protocol": PROTOCOL,
            "home": home_id,
            "limit": output_limit,
            "saving": save_on_copy,
            "memory": memory,
            "payload": dump([asdict(function) for function in functions]),
        }
        self._attachment: Attachment | None = None
        self._identity = ""
        """Identifies the kernel's process: another one has none of the variables."""
        self._names: tuple[str, ...] = ()
        """The variables that were there after the last cell."""
        self._lost: tuple[str, ...] = ()
        """Variables lost with a former process, until a cell's result reports them."""
        self._cells = 0
        self._requests = 0
        self._is_busy = False
        self._clock = anyio.CancelScope()
        """Bounds the cell under way."""
        self._untimed = 0
        """Calls for which the clock stands still."""
        self._seconds_left = inf

    @classmethod
    async def connect(
        cls,
        machine: Machine,
        *,
        home_id: str,
        functions: Sequence[ReplFunction] = (),
        restore_variables: bool = False,
        save_on_copy: bool = True,
        output_limit: int = OUTPUT_LIMIT,
        memory: int | None = None,
    ) -> Kernel:
        """Attach to the kernel of a machine, or start it. Another host's attachment ends.

        Args:
            machine: The machine that it lives in.
            home_id: The machine's id: while it is the current one, commands and files are local.
            functions: What cells can call, beside FINAL. The handler of `run` answers the calls.
            restore_variables: Read what `save_variables` left in this machine's files; for the
                first kernel of a copy whose memory was not copied.
            save_on_copy: Whether a cell that copies its machine saves the variables first; not
                needed where copies carry memory.
            output_limit: Bytes of each cell's output that are kept.
            memory: Bytes of memory that the machine has. If known, a cell that wants more gets a
                MemoryError; else the kernel is killed and its variables are lost.

        Raises:
            KernelError: No kernel can be started.
            MachineError: The machine cannot be used.
        """
        kernel = cls(
            machine,
            await upload(machine),
            home_id=home_id,
            functions=functions,
            save_on_copy=save_on_copy,
            output_limit=output_limit,
            memory=memory,
        )
        try:
            await kernel._attach()
            if restore_variables:
                kernel.carried = await kernel._request("restore", SAVE_SECONDS, parse_carried)
        except BaseException:
            await kernel.aclose()
            raise
        return kernel

    async def run(
        self,
        code: str,
        *,
        timeout: float,
        handler: Handler,
        on_output: Callable[[str], None] | None = None,
        cells: int = 0,
    ) -> CellResult:
        """Run one cell. Errors of the cell are part of the result.

        When its time is up, or the call is cancelled, the cell is interrupted; if that does not
        end it, the kernel is killed and its variables are lost. A cell whose connection was lost
        is interrupted and never run again.

        Args:
            code: Python source.
            timeout: Seconds the cell may take, calls to the host included.
            handler: Answers the cell's calls to functions of the host.
            on_output: Called with each piece of output as it comes.
            cells: How many cells ran before. A kernel that was restored on another machine may
                have counted fewer; tracebacks name cells by their number.

        Raises:
            InputError: The code is too long.
            KernelBusy: Another cell runs.
            WireError: The guest broke the protocol.
            MachineError: The kernel can no longer be reached.
        """
        source = code.encode(errors="replace")
        if len(source) > MAX_PAYLOAD:
            raise InputError(
                f"The code has {len(source)} bytes; write it into a file and run that."
            )
        with self._exclusive():
            started = anyio.current_time()
            output = Output(self._output_limit, on_output)
            with expect_answer(timeout):
                attachment = await self._attached()
            self._requests += 1
            self._cells = max(self._cells, cells) + 1
            run = CellRun(attachment, self._requests, output, handler)
            done = await self._perform(run, source, timeout)
            self._names = done.names or self._names
            lost, self._lost = self._lost, ()
            return CellResult(
                done.status,
                output.text,
                error=done.error,
                final=done.final,
                seconds=anyio.current_time() - started,
                lost=lost,
            )

    @contextmanager
    def untimed(self) -> Generator[None]:
        """Stop the clock of the cell under way, for one of its calls that has its own limits."""
        clock, now = self._clock, anyio.current_time()
        if not self._untimed:
            self._seconds_left = clock.deadline - now
            clock.deadline = inf
        self._untimed += 1
        try:
            yield
        finally:
            self._untimed -= 1
            if not self._untimed:
                clock.deadline = anyio.current_time() + self._seconds_left

    async def load(self, name: str, path: str, kind: Literal["text", "json", "bytes"]) -> None:
        """Make a variable of a file in the machine: a str, a JSON value, or bytes.

        The file must stay: a copy of the machine reads text and bytes from it again. Raises
        `InputError` when the file cannot be read as that kind.
        """
        try:
            await self._request("load", LOAD_SECONDS, bool, name=name, path=path, form=kind)
        except Refused as error:
            raise InputError(f"The input {name!r} cannot be loaded: {error}") from None

    async def save_variables(self, most: int | None = None) -> Carried:
        """Write the variables into a file of the machine, for a copy that takes only the disk.

        `most` limits them to so many bytes.
        """
        return await self._request("save", SAVE_SECONDS, parse_carried, most=most)

    async def variables(self) -> Sequence[Variable]:
        """Every variable, the oldest first."""
        return await self._request("variables", LIST_SECONDS, parse_variables)

    async def set_current(self, machine_id: str) -> None:
        """Set where commands and files act from now on. May be called while a cell runs."""
        self._current_id = machine_id
        if self._attachment and not self._attachment.is_broken:
            with suppress(Lost):  # the next attachment says it
                await self._attachment.send("current", machine=machine_id)

    async def aclose(self) -> None:
        """Release the kernel, which keeps running."""
        self.closed = True
        await self._detach()

    # One cell.

    async def _perform(self, run: CellRun, source: bytes, timeout: float) -> Done:
        try:
            with anyio.move_on_after(timeout) as self._clock:
                return await run.perform(source, self._cells)
            return await self._time_out(run, timeout)
        except Lost as lost:
            return await self._recover(lost)
        except WireError:
            await self.aclose()
            raise
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._abandon(run)
            raise

    async def _time_out(self, run: CellRun, timeout: float) -> Done:
        text = f"The cell ran into its time limit of {timeout:g} s and was interrupted"
        before = self._identity
        try:
            with anyio.move_on_after(INTERRUPT_SECONDS):
                done = await run.interrupt()
                if done.status == "final":
                    return done
                text = f"{text}.\n{done.error or ''}".rstrip()
                return Done("timeout", error=text, names=done.names)
            await self._attach("restart", RETURN_SECONDS)
        except Lost:
            await self._attach(seconds=RETURN_SECONDS)
        if self._identity == before:
            return Done("timeout", error=f"{text}.")
        return Done("timeout", error=f"{text}; it did not stop, so the kernel was restarted.")

    async def _recover(self, lost: Lost) -> Done:
        if lost.taken_over:
            await self._detach()
            text = "Another host took the kernel over and ended this cell."
            return Done("interrupted", error=text)
        before = self._identity
        await self._attach()
        if self._identity == before:
            text = "The connection was lost and restored, which interrupted this cell. "
            return Done("interrupted", error=f"{text}The variables are still there.")
        text = f"The kernel died while this cell ran: {lost}. A new one was started."
        return Done("died", error=text)

    async def _abandon(self, run: CellRun) -> None:
        """Stop a cell whose caller is gone; kill the kernel if the cell does not stop."""
        if not run.may_have_begun:
            return
        with anyio.move_on_after(CANCEL_SECONDS), suppress(VersRlmError):
            try:
                self._names = (await run.interrupt()).names or self._names
            except Lost:
                await self._attach()  # which interrupts it, too
            return
        with suppress(VersRlmError):  # what ended the cell matters more
            await self._kill()

    # Other requests.

    async def _request(
        self, kind: str, seconds: float, parse: Callable[[JsonValue], Answer], **fields: Any
    ) -> Answer:
        """Ask for anything but a cell. Raises `Refused` if the kernel could not do it."""
        with self._exclusive():
            attachment = await self._attached()
            self._requests += 1
            try:
                with anyio.fail_after(seconds):
                    await attachment.send(kind, id=self._requests, **fields)
                    frame = await attachment.receive()
                return parse(parse_answer(frame, self._requests))
            except Refused:
                raise
            except WireError:
                await self.aclose()
                raise
            except BaseException as error:
                await self._detach()  # the next host to attach interrupts what may still run
                if isinstance(error, Lost):
                    raise KernelGone(f"The kernel was lost during the request: {error}.") from None
                if isinstance(error, TimeoutError):
                    raise KernelError(f"The kernel took longer than {seconds:g} s.") from None
                raise

    @contextmanager
    def _exclusive(self) -> Generator[None]:
        if self._is_busy:
            raise KernelBusy("A cell is running in this kernel; wait until it is over.")
        self._is_busy = True
        try:
            yield
        finally:
            self._is_busy = False

    # The attachment.

    async def _attached(self) -> Attachment:
        if self.closed:
            raise KernelGone("This connection to the kernel is closed.")
        if self._attachment is None or await self._attachment.is_lost():
            await self._attach()
        assert self._attachment
        return self._attachment

    async def _attach(self, mode: Mode = "attach", seconds: float = REACH_SECONDS) -> None:
        """Attach again. A kernel that does not admit this host is restarted."""
        await self._detach()
        try:
            with anyio.fail_after(seconds):
                if mode == "restart" or not await self._is_admitted():
                    await self._admit("restart", ATTACH_SECONDS)
        except TimeoutError:
            raise KernelError(f"No kernel could be started within {ATTACH_SECONDS:g} s.") from None
        except Lost as lost:
            raise KernelError(f"No kernel could be reached or started: {lost}.") from None

    async def _is_admitted(self) -> bool:
        try:
            try:
                await self._admit("attach", ADMIT_SECONDS)
            except Lost:  # it was just ending, or another host came in between
                await self._admit("attach", ADMIT_SECONDS)
        except TimeoutError:
            return False
        return True

    async def _admit(self, mode: Mode, seconds: float) -> None:
        attachment = Attachment(await start_program(self._machine, self._program, mode))
        try:
            with anyio.fail_after(seconds):
                await attachment.send("hello", current=self._current_id, **self._hello)
                ready = parse_ready(await attachment.receive())
        except BaseException:
            await _close(attachment)
            raise
        if self._identity and self._identity != ready.kernel:
            self._lost += self._names
        self._identity, self._names = ready.kernel, ready.names
        self._cells = max(self._cells, ready.cells)
        self._attachment = attachment

    async def _detach(self) -> None:
        attachment, self._attachment = self._attachment, None
        if attachment:
            await _close(attachment)

    async def _kill(self) -> None:
        await self._detach()
        with anyio.move_on_after(KILL_SECONDS):
            async with await start_program(self._machine, self._program, "kill") as process:
                await process.wait()


async def _close(attachment: Attachment) -> None:
    with anyio.move_on_after(DETACH_SECONDS, shield=True):
        await attachment.aclose()
