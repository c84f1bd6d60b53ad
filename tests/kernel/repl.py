from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from vers_rlm_mcp.errors import UsageError
from vers_rlm_mcp.kernel.attachment import start_program, upload
from vers_rlm_mcp.runs.declarations import repl_functions

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import JsonValue

    from vers_rlm_mcp.kernel import HostCall, Kernel
    from vers_rlm_mcp.machines import Machine
    from vers_rlm_mcp.values import CellResult


FUNCTIONS = repl_functions()
"""Those that cells have in runs."""

NAMES = {name for function in FUNCTIONS for name in (function.name, function.twin)}


class Host:
    """Answers calls with themselves, and remembers them."""

    def __init__(self) -> None:
        self.calls: list[HostCall] = []

    async def __call__(self, call: HostCall) -> JsonValue:
        self.calls.append(call)
        if call.name == "llmQueryBatched":
            prompts = call.arguments["prompts"]
            assert isinstance(prompts, list)
            return [f"re: {prompt}" for prompt in prompts]
        if call.name == "vmRestore":
            raise UsageError("There is no such commit; the valid ones are c1 and c2.")
        return call.arguments.get("prompt", call.name)


class Repl:
    """A kernel with a host that answers, for tests that only run cells."""

    def __init__(self, kernel: Kernel, host: Host) -> None:
        self.kernel = kernel
        self.host = host

    async def __call__(
        self,
        code: str,
        *,
        timeout: float = 20,
        on_output: Callable[[str], None] | None = None,
    ) -> CellResult:
        with anyio.fail_after(timeout + 10):
            return await self.kernel.run(
                code, timeout=timeout, handler=self.host, on_output=on_output
            )

    async def output(self, code: str) -> str:
        """What a cell that must succeed writes."""
        result = await self(code)
        assert result.status == "ok", result.error
        return result.output

    async def error(self, code: str) -> str:
        """The error of a cell that must fail."""
        result = await self(code)
        assert result.status == "error", result
        assert result.error
        return result.error


async def end_kernel(machine: Machine) -> None:
    """Kill the kernel of a machine, if it has one."""
    process = await start_program(machine, await upload(machine), "kill")
    with anyio.fail_after(10):
        await process.wait()
    await process.aclose()


def written(result: CellResult) -> int:
    """How many bytes a cell wrote in all, those that were left out included."""
    gap = re.search(r"\n… (\d+) bytes left out …\n", result.output)
    if gap is None:
        return len(result.output.encode())
    return len(result.output.encode()) - len(gap[0].encode()) + int(gap[1])


def is_running(pid: int) -> bool:
    """Whether a process is there and not only waits for its parent to take notice of its end."""
    process = Path(f"/proc/{pid}")
    try:
        state = (process / "stat").read_text().rpartition(")")[2].split()[0]
        return state not in "ZX" or len(list((process / "task").iterdir())) > 1
    except FileNotFoundError:
        return False


async def ended(pid: int) -> None:
    """Wait until a process has ended."""
    with anyio.fail_after(5):
        while is_running(pid):  # noqa: ASYNC110 - nothing tells of the end of a stranger
            await anyio.sleep(0.01)
