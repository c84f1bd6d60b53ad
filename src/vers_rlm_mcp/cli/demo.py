"""`vers-rlm-mcp demo`: `vers_rlm` on real files in a real machine, through a real MCP client.

The command starts this server over stdio, as a client would, and calls `vers_rlm`. With a
provider's key in the environment, a model does the work. Without one, the model's replies come from
a script, but its code still runs in the machine.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcp import Client, StdioServerParameters

from vers_rlm_mcp.errors import ModelUnavailable
from vers_rlm_mcp.models import open_model

if TYPE_CHECKING:
    from types import SimpleNamespace

    from vers_rlm_mcp.settings import Settings

SCRIPT = Path(__file__).with_name("demo_script.txt")

SIGNATURE = (
    "task -> most_complex: list[dict], longest_functions: list[dict], original_untouched: bool, "
    "summary: str"
)

TASK = (
    "Find out which modules of the Python standard library on this machine are the most complex "
    "(count decision points with `ast`; leave tests out) and check its three longest functions: "
    "lines, decision points, whether they are documented and compile alone, and a remark of a "
    "sub-model on each. Copy the three into /workspace/review. Then take a snapshot, branch the "
    "machine, delete /workspace/review on the branch, and show that the original is untouched."
)


async def demonstrate(settings: Settings, _: SimpleNamespace) -> int:
    """Run the demonstration; return 0 if it succeeded and left no machine behind."""
    environment, notice = await _environment(settings)
    _print_lines(notice)
    server = StdioServerParameters(
        command=sys.executable, args=["-m", "vers_rlm_mcp"], env=environment
    )
    async with Client(server) as client:
        started = time.monotonic()
        result = await client.call_tool(
            "vers_rlm",
            {"signature": SIGNATURE, "inputs": {"task": TASK}},
            progress_callback=_print_progress,
        )
        seconds = time.monotonic() - started
        if result.is_error or result.structured_content is None:
            parts = (getattr(part, "text", "") for part in result.content)
            _print_lines("", "The run failed:", *parts)
            return 1
        machines: dict[str, Any] = (await client.call_tool("vmList", {})).structured_content or {}
    return _print_report(result.structured_content, machines, seconds)


async def _environment(settings: Settings) -> tuple[dict[str, str], str]:
    """The server's environment, and a notice that says whether the model is real."""
    environment = {**os.environ, **settings.environment()}
    try:
        model = open_model(settings.model)
    except ModelUnavailable:
        if settings.model is not None:
            raise
        environment |= dict.fromkeys(("VERS_RLM_MODEL", "VERS_RLM_SUB_MODEL"), f"scripted:{SCRIPT}")
        return environment, (
            "The model is SCRIPTED, since no API key is set: its replies were written in advance, "
            "but its code runs now, in a real machine. Set ANTHROPIC_API_KEY or OPENAI_API_KEY to "
            "use a real model."
        )
    await model.aclose()
    environment["VERS_RLM_MODEL"] = model.name
    return environment, f"The model is {model.name}."


async def _print_progress(progress: float, total: float | None, message: str | None) -> None:
    del total
    if message:
        _print_lines(f"[{progress:5.1f} s] {message}")


def _print_report(answer: dict[str, Any], machines: dict[str, Any], seconds: float) -> int:
    left = [vm["id"] for vm in machines.get("vms", [])]
    machine, outputs, used = answer["machine"], answer["outputs"], answer["usage"]
    _print_lines("", "Outputs", json.dumps(outputs, indent=2, ensure_ascii=False), "")
    _print_lines(
        f"{answer['status']} after {answer['steps']} steps in {seconds:.1f} s on "
        f"{machine['backend']} (isolation: {machine['isolation']}, fidelity: "
        f"{machine['fidelity']}), {used['sub_calls']} sub-calls, {used['tokens']:,} tokens.",
        f"Machines left behind: {', '.join(left) if left else 'none'}.",
    )
    succeeded = answer["status"] == "finished" and outputs.get("original_untouched") is True
    return 0 if succeeded and answer["run_id"] and machine["id"] not in left else 1


def _print_lines(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)
