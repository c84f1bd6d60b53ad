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
from vers_rlm_mcp.values import CellResult

from .attachment import Attachment, Lost, Mode, start_program, upload
from .cell_run import CellRun, Output
from .guest_frames import Refused, parse_answer, parse_carried, parse_ready, parse_variables
from .wire import MAX_PAYLOAD, PROTOCOL, dump

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from vers_rlm_mcp.machines import Machine
    from vers_rlm_mcp.values import CellStatus, ReplFunction

    from .base import Carried, Handler, Json, Variable
    from .guest_frames import Done

OUTPUT_LIMIT = 1024 * 1024
"""Bytes of a cell's output that are kept: a hundred times what a model is shown."""

ATTACH_SECONDS = 10.0
"""A kernel starts in a twentieth of a second; this is for a machine under heavy load."""

ADMIT_SECONDS = 3.0
"""How long a kernel that is there may take to admit a host, which interrupts what runs in it. It
counts from when the machine is reached: a kernel must not be ended for a slow network."""

REACH_SECONDS = 90.0
"""For all of that and reaching the machine again, which a remote backend tries for a minute."""

INTERRUPT_SECONDS = 1.0
"""From the interrupt until the kernel is killed: time for the cell's own ``finally`` blocks."""

CANCEL_SECONDS = 0.6
"""The same for a call that is cancelled."""

KILL_SECONDS = 0.4
"""For killing the kernel then, so that cancelling takes a second in all."""

DETACH_SECONDS = 1.0
"""Ends the program that stands for us, which does nothing but wait."""

LOAD_SECONDS = 300.0
"""Reading a JSON file of a gigabyte takes about a minute."""

SAVE_SECONDS = 120.0
"""The guest gives up on variables well before."""

LIST_SECONDS = 10.0
"""Previews call what classes define as their representation, which may hang."""

Answer = TypeVar("Answer")


class Kernel:
    """A Python process in a machine that runs cells and keeps their variables.

    It goes on when this object is closed, and when the connection is lost; a connection that is
    lost is made anew. After a `WireError` this object is of no use any more. Use `connect`.
    """

    def __init__(
        self,
        machine: Machine,
        home_id: str,
        *,
        functions: Sequence[ReplFunction],
        output_limit: int,
        save_on_copy: bool,
        memory: int | None,
    ) -> None:
        self.carried: Carried | None = None
        """What `restore_variables` brought back, and what not."""
        self.closed = False
        """Whether this object is of no use any more."""
        self._machine = machine
        self._home_id = self._current_id = home_id
        self._functions = dump([asdict(function) for function in functions])
        self._output_limit = output_limit
        self._save_on_copy = save_on_copy
        self._memory = memory
        self._program = ""
        self._attachment: Attachment | None = None
        self._identity = ""
        self._cells = 0
        self._requests = 0
        self._names: tuple[str, ...] = ()
        self._lost: tuple[str, ...] = ()
        self._busy = False
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
            machine: Where it lives, or shall live.
            home_id: The machine's id: while it is the current one, commands and files are local.
            functions: What cells can call, beside FINAL. The handler of `run` answers the calls.
            restore_variables: Read what `save_variables` left in this machine's files; for the
                first kernel of a copy whose memory was not copied.
            save_on_copy: Whether a cell that calls vmSnapshot or vmBranch saves the variables
                first; not needed where copies carry memory.
            output_limit: Bytes of each cell's output that are kept.
            memory: Bytes of memory that the machine has. Where they are known, a cell that wants
                more gets a MemoryError; else the kernel is killed and its variables are lost.

        Raises `KernelError` when no kernel can be started, and what the machine raises.
        """
        kernel = cls(
            machine,
            home_id,
            functions=functions,
            output_limit=output_limit,
            save_on_copy=save_on_copy,
            memory=memory,
        )
        kernel._program = await upload(machine)
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
    ) -> CellResult:
        """Run one cell and return what became of it, which includes every error of the cell.

        When its time is up, or the call is cancelled, the cell is interrupted; if that does not
        end it, the kernel is killed and its variables are lost. A cell whose connection was lost
        is interrupted and never run again.

        Args:
            code: Python source.
            timeout: Seconds the cell may take, calls to the host included.
            handler: Answers the cell's calls to functions of the host.
            on_output: Called with each piece of output as it comes.

        Raises `KernelBusy` while another cell runs, `WireError` when the guest breaks the
        protocol, and what the machine raises when the kernel cannot be reached any more.
        """
        source = code.encode(errors="replace")
        if len(source) > MAX_PAYLOAD:
            raise InputError(
                f"The code has {len(source)} bytes; write it into a file and run that."
            )
        with self._exclusive():
            started = anyio.current_time()
            attachment = await self._attached()
            output = Output(self._output_limit, on_output)
            run = CellRun(attachment, self._next_request(), output)
            self._cells += 1
            status, done, error = await self._perform(run, source, timeout, handler)
            if done:
                self._names = done.names or self._names
            return CellResult(
                status,
                output.text,
                error=error,
                final=done.final if done and status == "final" else None,
                seconds=anyio.current_time() - started,
                lost=self._take_lost(),
            )

    @contextmanager
    def untimed(self) -> Generator[None]:
        """Stop the clock of the cell under way, for a call of it that has limits of its own."""
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

        With `most`, so many bytes of them at most.
        """
        return await self._request("save", SAVE_SECONDS, parse_carried, most=most)

    async def variables(self) -> Sequence[Variable]:
        """Every variable, in the order they were made."""
        return await self._request("variables", LIST_SECONDS, parse_variables)

    async def set_current(self, machine_id: str) -> None:
        """Say where commands and files act from now on. May be called while a cell runs."""
        self._current_id = machine_id
        if self._attachment and not self._attachment.broken:
            with suppress(Lost):  # the next attachment says it
                await self._attachment.send("current", machine=machine_id)

    async def aclose(self) -> None:
        """Let go of the kernel, which goes on."""
        self.closed = True
        await self._detach()

    # One cell.

    async def _perform(
        self, run: CellRun, source: bytes, timeout: float, handler: Handler
    ) -> tuple[CellStatus, Done | None, str | None]:
        try:
            with anyio.move_on_after(timeout) as self._clock:
                done = await run.perform(source, self._cells, handler)
                return done.status, done, done.error
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

    async def _time_out(
        self, run: CellRun, timeout: float
    ) -> tuple[CellStatus, Done | None, str | None]:
        text = f"The cell ran into its time limit of {timeout:g} s and was interrupted"
        before = self._identity
        try:
            with anyio.move_on_after(INTERRUPT_SECONDS):
                done = await run.interrupt()
                if done.status == "final":
                    return "final", done, None
                return "timeout", done, f"{text}.\n{done.error or ''}".rstrip()
            await self._attach("restart")
        except Lost:
            await self._attach()
        if self._identity == before:
            return "timeout", None, f"{text}."
        return "timeout", None, f"{text}; it did not stop, so the kernel was started anew."

    async def _recover(self, lost: Lost) -> tuple[CellStatus, None, str]:
        if lost.taken_over:
            await self._detach()
            return "interrupted", None, "Another host took the kernel over and ended this cell."
        before = self._identity
        await self._attach()
        if self._identity == before:
            text = "The connection was lost and made anew; this cell was interrupted meanwhile. "
            return "interrupted", None, text + "The variables are still there."
        return "died", None, f"The kernel died while this cell ran: {lost}. A new one was started."

    async def _abandon(self, run: CellRun) -> None:
        """Stop a cell that nobody waits for any more; kill the kernel if it does not stop."""
        if not run.begun:
            return
        with anyio.move_on_after(CANCEL_SECONDS), suppress(VersRlmError):
            try:
                self._names = (await run.interrupt()).names or self._names
            except Lost:
                await self._attach()  # which interrupts it, too
            return
        with suppress(VersRlmError):  # what ended the cell matters more
            await self._kill(KILL_SECONDS)

    # Other requests.

    async def _request(
        self, kind: str, seconds: float, parse: Callable[[Json], Answer], **fields: Any
    ) -> Answer:
        """Ask for anything but a cell. Raises `Refused` when the kernel could not do it."""
        with self._exclusive():
            attachment = await self._attached()
            request = self._next_request()
            try:
                with anyio.fail_after(seconds):
                    await attachment.send(kind, id=request, **fields)
                    frame = await attachment.receive()
                return parse(parse_answer(frame, request))
            except Refused:
                raise
            except WireError:
                await self.aclose()
                raise
            except BaseException as error:
                await self._detach()  # the next host to attach interrupts what may still run
                if isinstance(error, Lost):
                    raise KernelGone(f"The kernel was lost meanwhile: {error}.") from None
                if isinstance(error, TimeoutError):
                    raise KernelError(f"The kernel took longer than {seconds:g} s.") from None
                raise

    # The attachment.

    async def _attached(self) -> Attachment:
        if self.closed:
            raise KernelGone("This connection to the kernel is closed.")
        if self._attachment is None or await self._attachment.is_lost():
            await self._attach()
        assert self._attachment
        return self._attachment

    async def _attach(self, mode: Mode = "attach") -> None:
        """Attach anew; a kernel that does not admit us is started anew."""
        await self._detach()
        try:
            with anyio.fail_after(REACH_SECONDS):
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
                await attachment.send(
                    "hello",
                    protocol=PROTOCOL,
                    home=self._home_id,
                    current=self._current_id,
                    limit=self._output_limit,
                    saving=self._save_on_copy,
                    memory=self._memory,
                    payload=self._functions,
                )
                ready = parse_ready(await attachment.receive())
        except BaseException:
            with anyio.CancelScope(shield=True):
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
            with anyio.CancelScope(shield=True):
                await _close(attachment)

    async def _kill(self, seconds: float) -> None:
        await self._detach()
        with anyio.move_on_after(seconds):
            process = await start_program(self._machine, self._program, "kill")
            try:
                await process.wait()
            finally:
                await process.aclose()

    # Small change.

    @contextmanager
    def _exclusive(self) -> Generator[None]:
        if self._busy:
            raise KernelBusy("A cell is running in this kernel; wait until it is over.")
        self._busy = True
        try:
            yield
        finally:
            self._busy = False

    def _next_request(self) -> int:
        self._requests += 1
        return self._requests

    def _take_lost(self) -> tuple[str, ...]:
        lost, self._lost = self._lost, ()
        return lost


async def _close(attachment: Attachment) -> None:
    with anyio.move_on_after(DETACH_SECONDS):
        await attachment.aclose()
