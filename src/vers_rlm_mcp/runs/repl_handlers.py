"""The functions of the REPL that need the host: what they do, and how models see them.

The guest is not trusted: arguments are checked against the annotations below before anything is
done. Results are JSON, which the guest turns into Python values. Models read the declarations in
the order of this file.
"""

import base64
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Annotated

import anyio
from pydantic import Base64Bytes, Field, JsonValue, ValidationError

from vers_rlm_mcp.errors import UsageError, VersRlmError
from vers_rlm_mcp.kernel import Carried, HostCall
from vers_rlm_mcp.machines import expect_answer
from vers_rlm_mcp.values import CellResult

from .branching import Children, Keep
from .declarations import CARRIED, DECLARED, checked, repl_function
from .differences import compare
from .notes import lost_variables, not_carried

if TYPE_CHECKING:
    from .conversation import Conversation
    from .workbench import Workbench

OUTPUT_BYTES = 1024 * 1024
"""Bytes of each output of a command on another machine that a cell gets back."""

FILE_BYTES = 20 * 1024 * 1024
"""Bytes of a file on another machine that a cell gets back: as base64 they fit into a frame."""

MAX_BRANCHES = 64
"""Copies made by one call; the limit on machines alive is usually lower."""

SUB_CALL_MAX_CHARS = 10_000_000
"""Characters of one prompt: beyond any model's context, and small enough for many at once."""

Text = Annotated[str, Field(max_length=SUB_CALL_MAX_CHARS)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=MAX_BRANCHES)]
Plans = Annotated[list[Text], Field(min_length=1, max_length=MAX_BRANCHES)]


class CellCalls:
    """Answers the calls of cells: the `Handler` of their kernel.

    Args:
        bench: The machines that the functions act on.
        conversation: The conversation that the cells belong to. Outside of a run there is none,
            and only the functions of machines are available.
    """

    def __init__(self, bench: "Workbench", conversation: "Conversation | None" = None) -> None:
        self._bench = bench
        self._conversation = conversation
        self._children = conversation and Children(conversation)
        self._notes: list[str] = []

    async def __call__(self, call: HostCall) -> JsonValue:
        """Answer one call. Raises `VersRlmError`, which the cell gets as an exception."""
        declared = DECLARED.get(call.name)
        if declared is None or (declared.in_run and not self._conversation):
            raise UsageError(f"There is no {call.name}() here; this needs a run of vers_rlm.")
        carried = {CARRIED: call.carried} if declared.function.copies else {}
        try:
            return await checked(declared.answer)(self, **{**call.arguments, **carried})
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
                for fault in error.errors(include_url=False, include_input=False)
            )
            raise UsageError(f"{call.name}() was called wrongly: {faults}.") from None

    def note(self, sentences: Sequence[str]) -> None:
        """Tell the model something with the result of the next cell."""
        self._notes += sentences

    def take_notes(self) -> Sequence[str]:
        """What the model should know of the calls since the last time, in whole sentences."""
        notes, self._notes = self._notes, []
        return notes

    # Commands and files.

    @repl_function(
        "run a shell command in the current machine. Returns a str: stdout, stderr, then "
        "`[exit code: N]` if not 0; also `.stdout`, `.stderr`, `.exit_code`"
    )
    async def exec(self, command: str, timeout: Seconds | None = None) -> JsonValue:
        """The guest calls this only for a machine other than its own, as for files."""
        result = await self._bench.exec(command, timeout=timeout, limit=OUTPUT_BYTES)
        return {
            "stdout": result.stdout.text,
            "stderr": result.stderr.text,
            "exit_code": result.exit_code,
        }

    @repl_function("the text of a file there; `readFile(path, binary=True)` gives its bytes")
    async def read_file(self, path: str) -> JsonValue:
        """Return the file as base64."""
        data = await self._bench.read_file(path, length=FILE_BYTES + 1)
        if len(data) > FILE_BYTES:
            raise UsageError(
                f"{path!r} is larger than {FILE_BYTES:,} bytes, too large to bring over from "
                "another machine; look at parts of it with exec()."
            )
        return base64.b64encode(data).decode()

    @repl_function("write a file there", call="writeFile(path, text)")
    async def write_file(self, path: str, base64: Base64Bytes) -> JsonValue:
        """Return the size in bytes."""
        return await self._bench.write_file(path, base64)

    # Sub-models.

    @repl_function("ask a sub-model; returns its text", in_run=True)
    async def llm_query(self, prompt: Text) -> JsonValue:
        """The sub-call is reserved before it is made."""
        conversation = self._in_run
        conversation.budget.reserve_sub_calls(1, time.monotonic())
        return await conversation.ask_sub_model(prompt)

    @repl_function(
        "ask many at once; returns their texts, in order. One that failed begins with `[Error:`",
        in_run=True,
    )
    async def llm_query_batched(self, prompts: list[Text]) -> JsonValue:
        """A failure does not raise, since the other answers are paid for."""
        conversation = self._in_run
        conversation.budget.reserve_sub_calls(len(prompts), time.monotonic())
        answers: list[str] = [""] * len(prompts)

        async def ask(index: int, prompt: str) -> None:
            try:
                answers[index] = await conversation.ask_sub_model(prompt)
            except VersRlmError as error:
                answers[index] = f"[Error: {error}]"

        async with anyio.create_task_group() as tasks:
            for index, prompt in enumerate(prompts):
                tasks.start_soon(ask, index, prompt)
        return list[JsonValue](answers)

    # Conversations on copies of the machine.

    @repl_function(
        "give a part of the task to a model that works as you do, in a REPL on a copy of the "
        "machine: dearer than llmQuery, for what takes several steps. Returns the value of its "
        "output, or a dict of several; `merge`: files and directories of its copy to bring back",
        call='rlmQuery(task, inputs={}, outputs="answer", merge=[])',
        in_run=True,
    )
    async def rlm_query(
        self,
        task: Text,
        inputs: dict[str, JsonValue],
        outputs: str = "answer",
        seconds: Seconds | None = None,
        merge: list[Text] | None = None,
    ) -> JsonValue:
        """Files are merged only if there is an answer."""
        return await self._in_run_children.query(task, inputs, outputs, seconds, merge or [])

    @repl_function(
        "try several plans at once, each on a copy of the machine by a copy of you that knows all "
        "you know now. Returns a list of dicts: `outputs`, `error`, `score`, `steps`, `machine`. "
        '`outputs`: what each hands in, as in `"patch: str, passed: int"`; `score`: the name of '
        "an output or a function of the dict, the highest wins; `verify`: a shell command that "
        "must exit with 0; the winner's machine becomes the current one",
        call='branches(plans, outputs=None, score=None, keep="best", verify=None)',
        in_run=True,
    )
    async def branches(
        self,
        plans: Plans,
        carried: Carried | None,
        outputs: str | None = None,
        score: str | None = None,
        keep: Keep = "best",
        verify: str | None = None,
        seconds: Seconds | None = None,
    ) -> JsonValue:
        """A function as `score` is called in the guest, which then calls `choose_branch`."""
        return await self._in_run_children.try_plans(
            plans, carried, outputs=outputs, score=score, keep=keep, verify=verify, seconds=seconds
        )

    @repl_function("", in_run=True)
    async def choose_branch(self, scores: dict[str, float | None], winner: str | None) -> JsonValue:
        """Let one of the branches that were all kept win, as the cell's own function judged."""
        return await self._in_run_children.choose(scores, winner)

    # Machines.

    @repl_function("freeze the current machine; returns a commit id")
    async def vm_snapshot(self, carried: Carried | None) -> JsonValue:
        """`carried` is what the guest saved of its variables, here and below."""
        made = await self._bench.snapshot(carried=carried)
        self._notes += [*made.commit.notes, *not_carried(made.carried)]
        return made.commit.id

    @repl_function("copy the current machine; returns the copy's id (a list of ids if count > 1)")
    async def vm_branch(self, carried: Carried | None, count: Count = 1) -> JsonValue:
        """Copies count against the run's limit on machines."""
        with self._reserved(count):
            made = await self._bench.branch(count, carried=carried)
        self._notes += not_carried(made.carried)
        return made.ids[0] if count == 1 else list[JsonValue](made.ids)

    @repl_function("make another machine the current one")
    async def vm_switch(self, id: str) -> JsonValue:  # noqa: A002 - its name in the REPL
        """Return a sentence that names both machines."""
        previous = await self._bench.switch(id)
        return f"Switched from {previous} to {id}"

    @repl_function("make a new machine from a commit and switch to it; returns its id")
    async def vm_restore(self, commit: str) -> JsonValue:
        """The machine counts against the run's limit."""
        with self._reserved(1):
            return (await self._bench.restore(commit)).id

    @repl_function(
        "what is different in machine or commit b (default: the current machine) than in a: "
        "files (below a directory), packages, processes, variables; returns text"
    )
    async def vm_diff(self, a: str, b: str | None = None, path: str | None = None) -> JsonValue:
        """Commits are restored for the comparison."""
        return (await compare(self._bench, a, b, path=path or "/")).text

    @repl_function("the id of the current machine")
    async def current_vm_id(self) -> JsonValue:
        """None before the first machine is made."""
        return self._bench.current

    @repl_function("what is used and left, as a dict", in_run=True)
    async def budget(self) -> JsonValue:
        """The conversation's own budget, which is a share of its parent's."""
        return dict[str, JsonValue](self._in_run.budget.snapshot(time.monotonic()))

    @property
    def _in_run(self) -> "Conversation":
        assert self._conversation, "functions that need a run are only called in one"
        return self._conversation

    @property
    def _in_run_children(self) -> Children:
        assert self._children, "functions that need a run are only called in one"
        return self._children

    def _reserved(self, machines: int) -> AbstractContextManager[None]:
        return self._conversation.reserved(machines) if self._conversation else nullcontext()


async def run_cell(
    bench: "Workbench",
    code: str,
    *,
    timeout: float,
    machine_id: str | None = None,
    on_output: Callable[[str], None] | None = None,
) -> tuple[CellResult, Sequence[str]]:
    """Run one cell in a machine's kernel, outside of any run; see `Kernel.run`.

    In the cell, the machine functions act on its own machine until it switches to another.

    Returns:
        The cell's result, and whole sentences on what else the caller should know.

    Raises:
        KernelBusy: Another cell, or a run, is using the kernel.
    """
    with expect_answer(timeout):
        machine = await bench.machine(machine_id)
    if machine.id != bench.current:
        bench = bench.at(machine.id)
    calls = CellCalls(bench)
    with bench.using_kernel(machine.id):
        with expect_answer(timeout):
            kernel = bench.home = await bench.kernel(machine.id)
            await kernel.set_current(machine.id)
        result = await kernel.run(code, timeout=timeout, handler=calls, on_output=on_output)
    return result, (*lost_variables(result), *calls.take_notes())
